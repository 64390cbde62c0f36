"""Plain numpy float32: the definition of every op."""
