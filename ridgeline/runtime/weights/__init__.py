"""Checkpoints as streams of tensors over memory maps: GGUF files and folders of safetensors."""

from __future__ import annotations

from ridgeline.runtime.weights.open import open_tensors
from ridgeline.runtime.weights.stream import TensorStream
from ridgeline.runtime.weights.tensor import TensorSource

__all__ = ["TensorSource", "TensorStream", "open_tensors"]
