"""One tensor of a checkpoint, still in its file: bytes over a memory map, decoded by rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from ridgeline.facts.ggml import GgmlType
from ridgeline.runtime.weights.dequant import dequantize, scales_are_finite

PORTION_BYTES = 8 << 20
"""About how many bytes of float32 `portions` hands out at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class TensorSource:
    """`shape` is outermost first; `data` is flat uint8 over the map, `num_rows * row_bytes` long.

    `row_permutation[i]` is the stored row that holds row i (None: they are in order): llama.cpp
    interleaves the rows of q and k. `rows`, `raw_rows` and `portions` undo it; who reads `data`
    directly must do so too. A vector `[d]` is one row and always in order.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    data: npt.NDArray[np.uint8]
    row_permutation: npt.NDArray[np.int64] | None = None

    @property
    def num_rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def num_columns(self) -> int:
        return self.shape[-1]

    @property
    def row_bytes(self) -> int:
        return self.type.num_bytes(self.num_columns)

    def raw_rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Stored bytes of rows start..stop-1 in the tensor's own order: `[stop - start, row_bytes]`.

        A view of the file where rows are in order, else a copy.
        """
        table = self.data.reshape(self.num_rows, self.row_bytes)
        if self.row_permutation is None:
            return table[start:stop]
        return table[self.row_permutation[start:stop]]

    def rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Values of rows start..stop-1: `[stop - start, num_columns]`."""
        return dequantize(self.raw_rows(start, stop), self.type)

    def portions(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """(first row, values) of all rows, a bounded number of bytes at a time."""
        step = max(1, PORTION_BYTES // (4 * self.num_columns))
        for start in range(0, self.num_rows, step):
            yield start, self.rows(start, min(start + step, self.num_rows))

    def float32(self) -> npt.NDArray[np.float32]:
        """All values in `shape`, decoded in portions into one array."""
        values = np.empty((self.num_rows, self.num_columns), dtype=np.float32)
        for start, portion in self.portions():
            values[start : start + len(portion)] = portion
        return values.reshape(self.shape)

    def has_finite_scales(self) -> bool:
        """False when a quantised block's scale is infinite or not a number."""
        return scales_are_finite(self.data, self.type)
