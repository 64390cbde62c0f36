"""The paged KV cache as one numpy array.

pool   [num_blocks, layers_per_page, K and V, block_size, kv_heads, head_dim]
a layer lives at a slot of every page of its group's blocks
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ridgeline.runtime.batch import Batch

if TYPE_CHECKING:
    from ridgeline.facts.kv_layout import KvLayout

Array = npt.NDArray[np.float32]


class KvCache:
    """Keys and values by position, found through the batch's block tables.

    `bf16`: what is written is rounded to bfloat16 first (the pool stays float32).
    """

    def __init__(self, layout: KvLayout, num_blocks: int, *, bf16: bool = False) -> None:
        self.block_size = layout.block_size
        self.bf16 = bf16
        self.pool = np.zeros(
            (num_blocks, layout.layers_per_page, 2, layout.block_size, layout.num_kv_heads, layout.head_dim),
            np.float32,
        )
        self.place = {layer: layout.place(layer) for group in layout.groups for layer in group.layers}

    def write(self, batch: Batch, layer: int, keys: Array, values: Array) -> None:
        """Put `[n, kv_heads, head_dim]` at the positions of the batch's tokens."""
        group, slot = self.place[layer]
        row_of_token = np.repeat(np.arange(batch.num_rows), np.diff(batch.row_starts))
        blocks = batch.block_tables[group][row_of_token, batch.positions // self.block_size]
        offsets = batch.positions % self.block_size
        rounded = to_bf16 if self.bf16 else np.asarray
        self.pool[blocks, slot, 0, offsets] = rounded(keys)
        self.pool[blocks, slot, 1, offsets] = rounded(values)

    def read(self, batch: Batch, row: int, layer: int, start: int, count: int) -> tuple[Array, Array]:
        """Keys and values of positions `start .. start + count - 1` of a row, `[count, kv_heads, head_dim]`.

        Positions not written yet, or let go by a window, read as zeros, whatever the pool holds.
        """
        group, slot = self.place[layer]
        table = batch.block_tables[group][row]
        positions = np.arange(start, start + count)
        index = positions // self.block_size
        blocks = table[np.minimum(index, len(table) - 1)]
        end = batch.context_before[row] + batch.row_starts[row + 1] - batch.row_starts[row]
        both = self.pool[blocks, slot, :, positions % self.block_size]
        both[(blocks < 0) | (positions >= end)] = 0
        return both[:, 0], both[:, 1]


def to_bf16(x: Array) -> Array:
    """Round to the nearest bfloat16 (ties to even), kept as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)
