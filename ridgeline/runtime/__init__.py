"""Where tensors live. Reached by name only."""
