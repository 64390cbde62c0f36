"""Tiny random models on the reference backend, for the tests of runtime and of the contracts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ridgeline.facts.config_json import model_spec_from_config
from ridgeline.facts.ggml import GgmlType
from ridgeline.facts.kv_layout import KvLayout, kv_layout
from ridgeline.facts.model_spec import ModelSpec
from ridgeline.runtime.backend import Backend, Model
from ridgeline.runtime.batch import Batch
from ridgeline.runtime.models import load_model
from ridgeline.runtime.reference.backend import ReferenceBackend
from ridgeline.runtime.weights import TensorSource, TensorStream
from tests.references import tiny


def stream_of(arrays: dict[str, np.ndarray]) -> TensorStream:
    """A checkpoint in memory."""
    return TensorStream(
        "memory",
        (
            TensorSource(name, values.shape, GgmlType.F32, values.reshape(-1).view(np.uint8))
            for name, values in arrays.items()
        ),
    )


@dataclass
class TinyModel:
    """A loaded model with its backend and cache."""

    spec: ModelSpec
    model: Model
    backend: Backend
    layout: KvLayout
    num_blocks: int

    def logits(self, token_ids: list[int], chunks: list[int] | None = None) -> np.ndarray:
        """Logits of every position `[n, vocab]` of one sequence, computed in chunks of the given sizes."""
        width = -(-len(token_ids) // self.layout.block_size)
        tables = tuple(
            np.arange(g * width, (g + 1) * width, dtype=np.int32)[None]
            for g in range(len(self.layout.groups))
        )
        out, start = [], 0
        for count in chunks or [len(token_ids)]:
            batch = Batch(
                token_ids=np.array(token_ids[start : start + count], np.int32),
                positions=np.arange(start, start + count, dtype=np.int32),
                row_starts=np.array([0, count], np.int32),
                context_before=np.array([start], np.int32),
                block_tables=tables,
                logit_rows=np.arange(count, dtype=np.int32),
            )
            out.append(self.backend.run(self.model, batch).copy())
            start += count
        return np.concatenate(out)


def load_tiny(
    name: str, *, block_size: int = 8, num_blocks: int = 256, backend: Backend | None = None
) -> TinyModel:
    """The tiny model `name` of tests/references/tiny.py, on the reference backend unless another is given."""
    config = tiny.CONFIGS[name]
    spec = model_spec_from_config(config, name)
    backend = backend or ReferenceBackend()
    model = load_model(spec, stream_of(tiny.tensors(config)), backend)
    layout = kv_layout(spec, block_size, 4)
    backend.allocate_kv(layout, num_blocks)
    return TinyModel(spec, model, backend, layout, num_blocks)
