"""Running requests as rows of arrays, so that a step's Batch is built without touching single tokens.

tokens  [num_slots, max_model_len + 1]      prompt, then what was generated, by position
tables  per KV group [num_slots, max_blocks] the block table, rewritten when the plan's tuple changed
records [num_slots]                         how the request samples (`sampler.ROW`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ridgeline.core.plan import NO_BLOCK, Admission, Row
from ridgeline.core.request import Request
from ridgeline.engine.sampling_params import SamplingParams
from ridgeline.runtime.batch import Batch, Int32Array
from ridgeline.runtime.sampler import ROW, SampleRow, needs_mask_or_bias, record


@dataclass(slots=True)
class Occupant:
    """The request in a slot. `tables` are the tuples last copied into the slot's block tables."""

    request: Request
    params: SamplingParams
    slot: int
    masked_or_biased: bool
    stop_token_ids: Int32Array
    tables: list[tuple[int, ...]] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """What a backend's own sampler must know, one entry a row: arrays that cost no work per row to make."""

    records: npt.NDArray[np.void]
    """`[m]` of dtype `sampler.ROW`."""
    store: Int32Array
    """`[num_slots, max_model_len + 1]`, tokens by position."""
    slots: Int32Array
    """`[m]`: the row of `store`."""
    lengths: Int32Array
    """`[m]`: tokens so far, which is the position of the one to be drawn."""
    num_top: tuple[int | None, ...]
    """`SamplingParams.logprobs` of each row."""


class Slots:
    """Token store and block tables of the running requests."""

    def __init__(self, num_slots: int, max_model_len: int, block_size: int, num_groups: int) -> None:
        num_blocks = -(-max_model_len // block_size) + 1
        self._tokens = np.zeros((num_slots, max_model_len + 1), np.int32)
        self._tables = [np.full((num_slots, num_blocks), NO_BLOCK, np.int32) for _ in range(num_groups)]
        self._records = np.zeros(num_slots, ROW)
        self._free = list(range(num_slots - 1, -1, -1))
        self._occupants: dict[str, Occupant] = {}

    def release(self, request_ids: Sequence[str]) -> None:
        """Empty the slots of these requests (unknown ones have none)."""
        for request_id in request_ids:
            occupant = self._occupants.pop(request_id, None)
            if occupant is not None:
                self._free.append(occupant.slot)

    def admit(self, admission: Admission) -> None:
        """Give a request a slot holding its prompt and what it had generated; again after a preemption."""
        request = admission.request
        self.release((request.id,))
        if not self._free:
            self._grow()
        slot = self._free.pop()
        known = np.array(request.prompt + admission.generated, np.int32)
        self._tokens[slot, : len(known)] = known
        for table in self._tables:
            table[slot] = NO_BLOCK
        params = request.sampling if isinstance(request.sampling, SamplingParams) else SamplingParams()
        self._records[slot] = record(params, params.seed or 0, len(request.prompt))
        stops = np.array(sorted(request.stop_token_ids), np.int32)
        groups = len(self._tables)
        self._occupants[request.id] = Occupant(
            request, params, slot, needs_mask_or_bias(params), stops, [()] * groups, [0] * groups
        )

    def batch(self, rows: Sequence[Row]) -> Batch:
        """The step's inputs. Rows whose prompt logprobs are wanted ask for all their logits."""
        occupants = [self._occupants[row.request_id] for row in rows]
        slots = np.array([occupant.slot for occupant in occupants], np.int32)
        starts = np.array([row.start for row in rows], np.int32)
        counts = np.array([row.count for row in rows], np.int32)
        row_starts = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(counts, out=row_starts[1:])
        positions = np.arange(row_starts[-1], dtype=np.int32) + np.repeat(starts - row_starts[:-1], counts)
        tables = [self._table(group, rows, occupants, slots) for group in range(len(self._tables))]
        return Batch(
            token_ids=self._tokens[np.repeat(slots, counts), positions],
            positions=positions,
            row_starts=row_starts,
            context_before=starts,
            block_tables=tuple(tables),
            logit_rows=self._logit_rows(rows, row_starts),
        )

    def params(self, request_id: str) -> SamplingParams:
        return self._occupants[request_id].params

    def wants_prompt_logprobs(self, row: Row) -> bool:
        """Whether the row computes a position whose successor is a prompt token with logprobs wanted."""
        occupant = self._occupants[row.request_id]
        inside = row.start < len(occupant.request.prompt) - 1
        return occupant.params.prompt_logprobs is not None and inside

    def prompt_after(self, row: Row) -> Int32Array:
        """The prompt tokens at positions start + 1 .. start + count (as far as the prompt goes)."""
        occupant = self._occupants[row.request_id]
        end = min(row.start + row.count + 1, len(occupant.request.prompt))
        return self._tokens[occupant.slot, row.start + 1 : end]

    def sample_row(self, row: Row) -> SampleRow:
        """What the sampler must know to choose the token after this row."""
        occupant = self._occupants[row.request_id]
        position = row.start + row.count
        return SampleRow(
            params=occupant.params,
            seed=occupant.params.seed or 0,
            position=position,
            tokens=self._tokens[occupant.slot, :position],
            num_prompt=len(occupant.request.prompt),
            stop_token_ids=occupant.stop_token_ids,
        )

    def sampling_batch(self, rows: Sequence[Row]) -> SamplingBatch:
        """`sample_row` of all rows at once, as arrays."""
        occupants = [self._occupants[row.request_id] for row in rows]
        slots = np.array([occupant.slot for occupant in occupants], np.int32)
        return SamplingBatch(
            records=self._records[slots],
            store=self._tokens,
            slots=slots,
            lengths=np.array([row.start + row.count for row in rows], np.int32),
            num_top=tuple(occupant.params.logprobs for occupant in occupants),
        )

    def masked_or_biased(self, rows: Sequence[Row]) -> list[int]:
        """Indices of the rows whose logits get a bias or a mask (`sampler.mask_and_bias`)."""
        return [i for i, row in enumerate(rows) if self._occupants[row.request_id].masked_or_biased]

    def append(self, rows: Sequence[Row], tokens: Int32Array) -> None:
        """Store the sampled token of each row at the position after it."""
        slots = [self._occupants[row.request_id].slot for row in rows]
        self._tokens[slots, [row.start + row.count for row in rows]] = np.maximum(tokens, 0)

    def _table(
        self, group: int, rows: Sequence[Row], occupants: Sequence[Occupant], slots: Int32Array
    ) -> Int32Array:
        store = self._tables[group]
        for row, occupant in zip(rows, occupants, strict=True):
            blocks = row.blocks[group]
            if blocks is not occupant.tables[group]:
                store[occupant.slot, : len(blocks)] = blocks
                store[occupant.slot, len(blocks) : occupant.widths[group]] = NO_BLOCK
                occupant.tables[group] = blocks
                occupant.widths[group] = len(blocks)
        width = max((occupant.widths[group] for occupant in occupants), default=0)
        return np.ascontiguousarray(store[slots, :width])

    def _logit_rows(self, rows: Sequence[Row], row_starts: Int32Array) -> Int32Array:
        ends = row_starts[1:] - 1
        if not any(occupant.params.prompt_logprobs is not None for occupant in self._occupants.values()):
            sampling: Int32Array = ends[np.array([row.num_samples > 0 for row in rows], bool)]
            return sampling
        wanted = np.zeros(int(row_starts[-1]), bool)
        for i, row in enumerate(rows):
            if self.wants_prompt_logprobs(row):
                wanted[row_starts[i] : row_starts[i + 1]] = True
            wanted[ends[i]] |= row.num_samples > 0
        return np.flatnonzero(wanted).astype(np.int32)

    def _grow(self) -> None:
        """Twice as many slots; what they hold stays."""
        num_slots = len(self._tokens)
        self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
        self._tables = [np.concatenate([t, np.full_like(t, NO_BLOCK)]) for t in self._tables]
        self._records = np.concatenate([self._records, np.zeros_like(self._records)])
        self._free.extend(range(2 * num_slots - 1, num_slots - 1, -1))
