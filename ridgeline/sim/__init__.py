"""The same scheduler on a virtual clock: simulated and replayed executors."""
