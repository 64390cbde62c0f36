"""The native backend: weights packed by the C++ module, a step recorded once and replayed as one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ridgeline.facts.model_spec import RopeSpec
from ridgeline.facts.precision import Weights, precision_for
from ridgeline.runtime.backend import LinearKind, Logits, Model
from ridgeline.runtime.batch import Batch
from ridgeline.runtime.native import _native  # type: ignore[attr-defined]
from ridgeline.runtime.native.lowering import Limits, Lowering
from ridgeline.runtime.native.ops import RecordingOps
from ridgeline.runtime.native.weight import MatrixWeight, TableWeight, VectorWeight
from ridgeline.runtime.rope import cos_sin
from ridgeline.runtime.sampler import Sampled, errors_of, raw_logprobs

if TYPE_CHECKING:
    from ridgeline.engine.logprobs import RawLogprobs
    from ridgeline.facts.kv_layout import KvLayout
    from ridgeline.runtime.slots import SamplingBatch
    from ridgeline.runtime.weights.tensor import TensorSource

WORKSPACE_FLOATS = 1 << 20
"""Room in which few sequences with long contexts are attended to by several threads."""


class NativeBackend:
    """Implements `runtime.backend.Backend` on CPU kernels.

    `weights` is the precision of the layers' matrices, `head_weights` of the embedding and output head;
    "stored" is, for each product, the least that holds its matrices as the file stores them.
    `tier` names the kernels ("" the best of this machine, or RIDGELINE_ISA's).
    """

    def __init__(
        self,
        *,
        weights: Weights,
        head_weights: Weights,
        num_threads: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        tier: str = "",
    ) -> None:
        self.tier = tier or _native.tier()
        self.weight_bytes = 0
        self._weights = weights
        self._head_weights = head_weights
        self._max_tokens = max_num_batched_tokens
        self._max_positions = max_model_len
        self._pool = _native.ThreadPool(num_threads, self.tier)
        self._angles: dict[RopeSpec, tuple[Any, Any]] = {}
        self._layout: KvLayout | None = None
        self._cache: Any = None
        self._tapes: dict[int, tuple[Model, Any, int]] = {}
        self._logits: Logits = np.empty((0, 0), np.float32)

    # ---- Loading ----

    def linear(
        self, parts: Sequence[TensorSource], bias: Sequence[TensorSource] | None, kind: LinearKind
    ) -> MatrixWeight:
        weights = self._head_weights if kind == "head" else self._weights
        biases = None if bias is None else np.concatenate([source.float32() for source in bias])
        return MatrixWeight(self._pack(parts, weights, kind == "gate_up", biases))

    def embedding(self, source: TensorSource) -> TableWeight:
        return TableWeight(self._pack([source], self._head_weights, False, None))

    def tied_head(self, embedding: TableWeight) -> MatrixWeight:
        return embedding

    def vector(self, source: TensorSource, offset: float = 0.0) -> VectorWeight:
        values = source.float32().reshape(-1) + np.float32(offset)
        return VectorWeight(_native.Constant(values), len(values))

    def _pack(
        self,
        parts: Sequence[TensorSource],
        weights: Weights,
        gated: bool,
        biases: npt.NDArray[np.float32] | None,
    ) -> Any:
        precision = precision_for(part.type.name for part in parts) if weights == "stored" else weights
        stack = [(part.data, int(part.type), part.num_rows, part.row_permutation) for part in parts]
        columns = parts[0].num_columns
        matrix = _native.Matrix(self._pool, stack, columns, precision, gated, biases, self.tier)
        self.weight_bytes += matrix.num_bytes
        return matrix

    def allocate_kv(self, layout: KvLayout, num_blocks: int) -> None:
        """Raises ValueError when blocks or heads are no multiples of 16, or elements not bf16 or int8."""
        widths = (layout.bytes_per_element, layout.scale_bytes)
        if widths not in ((2, 0), (1, 4)):
            raise ValueError(f"kv_dtype: {widths[0]} bytes an element; the native cache is bf16 or int8")
        self._layout = layout
        sizes = (layout.layers_per_page, layout.num_kv_heads, layout.head_dim, layout.block_size)
        self._cache = _native.KvPool(num_blocks, *sizes, int8=widths[0] == 1)

    # ---- Running ----

    def run(self, model: Model, batch: Batch) -> Logits:
        """Replay the model's tape. Raises ValueError naming an input that does not fit."""
        _, tape, vocab = self._tapes.get(id(model)) or self._record(model)
        logits = self._logits_of(len(batch.logit_rows), vocab)
        tape.step(
            batch.token_ids,
            batch.positions,
            batch.row_starts,
            batch.context_before,
            list(batch.block_tables),
            batch.logit_rows,
            logits,
        )
        return logits

    def sample(self, logits: Logits, batch: SamplingBatch) -> Sampled:
        """Implements `runtime.backend.SamplingBackend`."""
        tokens = np.empty(len(logits), np.int32)
        records = batch.records.view(np.uint8).reshape(len(logits), -1)
        _native.sample(
            self._pool, logits, records, batch.store, batch.slots, batch.lengths, tokens, tier=self.tier
        )
        logprobs: list[RawLogprobs | None] = [None] * len(logits)
        asking = [
            i
            for i, (top, token) in enumerate(zip(batch.num_top, tokens, strict=True))
            if top is not None and token >= 0
        ]
        if asking:
            num_top = [batch.num_top[i] or 0 for i in asking]
            found = self._measure(logits, np.array(asking, np.int32), tokens[asking], num_top)
            for i, raw in zip(asking, found, strict=True):
                logprobs[i] = raw
        return Sampled(tokens, errors_of(tokens), tuple(logprobs))

    def logprobs_of(self, logits: Logits, tokens: npt.NDArray[np.int32], num_top: int) -> list[RawLogprobs]:
        """Implements `runtime.backend.SamplingBackend`."""
        rows = np.arange(len(tokens), dtype=np.int32)
        return self._measure(logits, rows, np.ascontiguousarray(tokens), [num_top] * len(rows))

    def _measure(
        self, logits: Logits, rows: npt.NDArray[np.int32], tokens: npt.NDArray[np.int32], num_top: list[int]
    ) -> list[RawLogprobs]:
        """Log probabilities of `tokens` and of the likeliest `num_top[i]` in each `logits[rows[i]]`."""
        mass, above = np.empty(len(rows), np.int64), np.zeros(len(rows), np.int32)
        top_ids = np.empty((len(rows), min(max(num_top, default=0), logits.shape[1])), np.int32)
        _native.measure_logprobs(self._pool, logits, rows, tokens, mass, above, top_ids, tier=self.tier)
        return [
            raw_logprobs(logits[row], token, row_mass, row_above, ids[:top])
            for row, token, row_mass, row_above, ids, top in zip(
                rows.tolist(), tokens.tolist(), mass.tolist(), above.tolist(), top_ids, num_top, strict=True
            )
        ]

    def tape_of(self, model: Model) -> Any:
        """The model's `_native.Tape`, for measurements."""
        return (self._tapes.get(id(model)) or self._record(model))[1]

    def close(self) -> None:
        self._tapes.clear()
        self._cache = None
        self._logits = np.empty((0, 0), np.float32)

    def _record(self, model: Model) -> tuple[Model, Any, int]:
        """Record `forward` once; the tape serves every later step of this model."""
        if self._layout is None:
            raise RuntimeError("allocate_kv comes before run")
        ops = RecordingOps()
        out = model.forward(ops)
        if out.op != "logits":
            raise ValueError(f"forward: must end in ops.logits, not in {out.op}")
        lowering = Lowering(ops.nodes, Limits(self._max_tokens), self._layout, self._cache, self._angles_of)
        instructions, arena_bytes = lowering.instructions()
        tape = _native.Tape(
            self._pool, arena_bytes, self._max_tokens, self._max_tokens, WORKSPACE_FLOATS, self.tier
        )
        for instruction in instructions:
            instruction.append(tape)
        self._tapes[id(model)] = (model, tape, out.width)
        return self._tapes[id(model)]

    def _angles_of(self, rope: RopeSpec) -> tuple[Any, Any]:
        if rope not in self._angles:
            tables = cos_sin(rope, np.arange(self._max_positions, dtype=np.int32))
            cos, sin = (_native.Constant(np.ascontiguousarray(table).reshape(-1)) for table in tables)
            self._angles[rope] = (cos, sin)
        return self._angles[rope]

    def _logits_of(self, num_rows: int, vocab: int) -> Logits:
        """`[num_rows, vocab]`, in a buffer that is kept and grows."""
        if self._logits.shape[0] < num_rows or self._logits.shape[1] != vocab:
            self._logits = np.empty((max(num_rows, 2 * self._logits.shape[0]), vocab), np.float32)
        return self._logits[:num_rows]
