"""One file per architecture, written against `ops`: the same definition for every backend."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ridgeline.runtime.models.checkpoint import Checkpoint, CheckpointMismatch, Progress, TensorStream
from ridgeline.runtime.models.decoder import Decoder

if TYPE_CHECKING:
    from ridgeline.facts.model_spec import ModelSpec
    from ridgeline.runtime.backend import Backend, Model

__all__ = ["Checkpoint", "CheckpointMismatch", "TensorStream", "load_model"]

LAYERS = {"llama": "LlamaLayer", "qwen2": "Qwen2Layer", "qwen3": "Qwen3Layer", "gemma3": "Gemma3Layer"}
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
    model = Decoder(spec, checkpoint, getattr(module, LAYERS[spec.architecture]))
    checkpoint.finish(tied_embeddings=spec.tied_embeddings)
    return model
