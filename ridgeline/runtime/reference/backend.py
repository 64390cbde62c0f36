"""The reference backend: float32 weights, ops evaluated at once, the KV cache one numpy array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ridgeline.runtime.backend import LinearKind, Logits, Model
from ridgeline.runtime.batch import Batch
from ridgeline.runtime.reference.kv import KvCache, KvDtype
from ridgeline.runtime.reference.ops import ReferenceOps
from ridgeline.runtime.reference.weight import Matrix

if TYPE_CHECKING:
    from ridgeline.facts.kv_layout import KvLayout
    from ridgeline.runtime.weights.tensor import TensorSource

Array = npt.NDArray[np.float32]


class ReferenceBackend:
    """Implements `runtime.backend.Backend`. `kv_dtype`: what keys and values are rounded to."""

    def __init__(self, *, kv_dtype: KvDtype = "float32") -> None:
        self._kv_dtype = kv_dtype
        self._cache: KvCache | None = None

    def linear(
        self, parts: Sequence[TensorSource], bias: Sequence[TensorSource] | None, kind: LinearKind
    ) -> Matrix:
        values = np.concatenate([part.float32() for part in parts])
        return Matrix(values, None if bias is None else np.concatenate([part.float32() for part in bias]))

    def embedding(self, source: TensorSource) -> Matrix:
        return Matrix(source.float32())

    def tied_head(self, embedding: Matrix) -> Matrix:
        return embedding

    def vector(self, source: TensorSource, offset: float = 0.0) -> Array:
        return source.float32() + np.float32(offset)

    def allocate_kv(self, layout: KvLayout, num_blocks: int) -> None:
        self._cache = KvCache(layout, num_blocks, dtype=self._kv_dtype)

    def run(self, model: Model, batch: Batch) -> Logits:
        if self._cache is None:
            raise RuntimeError("allocate_kv comes before run")
        logits: Logits = model.forward(ReferenceOps(batch, self._cache))
        return logits

    def close(self) -> None:
        self._cache = None
