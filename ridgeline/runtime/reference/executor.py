"""From a model on disk to an executor on the reference backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ridgeline.runtime.model_executor import ModelExecutor
from ridgeline.runtime.models import load_model
from ridgeline.runtime.reference.backend import ReferenceBackend
from ridgeline.runtime.weights import open_tensors

if TYPE_CHECKING:
    from ridgeline.engine.resolve import EngineConfig
    from ridgeline.engine.source import ModelSource
    from ridgeline.facts.model_spec import ModelSpec


def load(
    source: ModelSource,
    spec: ModelSpec,
    config: EngineConfig,
    progress: Callable[[int, int], None] | None = None,
) -> ModelExecutor:
    """Read the weights as float32, allocate the cache, start the worker.

    `progress(bytes read, bytes in all)` is called after each tensor.
    Raises CheckpointMismatch when the checkpoint is not that of `spec`.
    """
    backend = ReferenceBackend(kv_dtype=config.kv_dtype)
    model = load_model(spec, open_tensors(source, spec), backend, progress)
    layout = config.kv_layout(spec)
    backend.allocate_kv(layout, config.num_blocks)
    return ModelExecutor(
        model,
        backend,
        block_size=config.block_size,
        num_groups=len(layout.groups),
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
    )
