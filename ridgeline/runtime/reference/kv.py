"""The paged KV cache as one numpy array.

pool   [num_blocks, layers_per_page, K and V, block_size, kv_heads, head_dim]
a layer lives at a slot of every page of its group's blocks
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from ridgeline.runtime.batch import Batch

if TYPE_CHECKING:
    from ridgeline.facts.kv_layout import KvLayout

Array = npt.NDArray[np.float32]
KvDtype = Literal["float32", "bf16", "int8"]


class KvCache:
    """Keys and values by position, found through the batch's block tables.

    What is written is rounded to what `dtype` holds (`stored_as`); the pool itself stays float32.
    """

    def __init__(self, layout: KvLayout, num_blocks: int, *, dtype: KvDtype = "float32") -> None:
        self.block_size = layout.block_size
        self.dtype: KvDtype = dtype
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
        self.pool[blocks, slot, 0, offsets], self.pool[blocks, slot, 1, offsets] = stored_as(
            self.dtype, keys, values
        )

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


def stored_as(dtype: KvDtype, keys: Array, values: Array) -> tuple[Array, Array]:
    """Keys and values `[n, kv_heads, head_dim]` as a cache of `dtype` gives them back.

    int8: n * scale with n in -127..127 and a scale for each token and head. Keys are rotated by a
    Walsh-Hadamard matrix before it and back after it, which spreads their few large features over all
    (QuaRot: Ashkboos et al. 2024).
    """
    if dtype == "bf16":
        return to_bf16(keys), to_bf16(values)
    if dtype == "int8":
        return rotated(to_int8(rotated(keys))), to_int8(values)
    return keys, values


def to_int8(x: Array) -> Array:
    """Round to 127 steps on each side of zero, the largest of the last axis being the last step."""
    largest = np.abs(x).max(axis=-1, keepdims=True)
    inverse = np.float32(127) / np.where(largest > 0, largest, np.float32(np.inf))
    rounded: Array = np.rint(x * inverse) * (largest / np.float32(127))
    return rounded


def rotated(x: Array) -> Array:
    """The last axis times an orthogonal Walsh-Hadamard matrix, its own inverse.

    Of a length that is no power of two, runs of the largest one that divides it are rotated.
    """
    length = x.shape[-1] & -x.shape[-1]
    runs = np.ascontiguousarray(x, np.float32).reshape(-1, length)
    step = 1
    while step < length:
        pairs = runs.reshape(-1, length // (2 * step), 2, step)
        runs = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        step *= 2
    scaled: Array = runs.reshape(x.shape) * np.float32(length**-0.5)
    return scaled


def to_bf16(x: Array) -> Array:
    """Round to the nearest bfloat16 (ties to even), kept as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)
