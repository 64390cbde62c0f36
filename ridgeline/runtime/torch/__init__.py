"""CUDA through torch: the only package that may import it."""
