"""One file per architecture, written against `ops`: the same definition for every backend."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ridgeline.runtime.models.checkpoint import Checkpoint, CheckpointMismatch, Progress, TensorStream

if TYPE_CHECKING:
    from ridgeline.facts.model_spec import ModelSpec
    from ridgeline.runtime.backend import Backend, Model

__all__ = ["Checkpoint", "CheckpointMismatch", "TensorStream", "load_model"]

ARCHITECTURES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma3": "Gemma3"}
"""ModelSpec.architecture -> class in the module of that name."""


def load_model(
    spec: ModelSpec, stream: TensorStream, backend: Backend, progress: Progress | None = None
) -> Model:
    """Build the model of `spec`, taking every tensor of `stream`.

    `progress(bytes taken, bytes in all)` is called before each tensor and at the end. Raises
    CheckpointMismatch naming the tensors that are missing, of another shape, or left over.
    """
    module = importlib.import_module(f"ridgeline.runtime.models.{spec.architecture}")
    checkpoint = Checkpoint(stream, backend, progress)
    model: Any = getattr(module, ARCHITECTURES[spec.architecture])(spec, checkpoint)
    checkpoint.finish(tied_embeddings=spec.tied_embeddings)
    return model  # type: ignore[no-any-return]
