"""Checkpoint tensors as a stream that must end empty."""
