"""One step's inputs, flattened: what a backend runs a model on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Batch:
    """r rows (one per request) of n tokens in all, concatenated in row order. C-contiguous int32 arrays.

        row 0 (decode)   row 1 (chunk of 3)   row 2 (decode)
        [ t ]            [ t  t  t ]          [ t ]              token_ids, positions: [n]
        ^0               ^1                   ^4      ^5         row_starts: [r + 1]

    Attributes:
        token_ids: `[n]`.
        positions: `[n]`, the position of each token in its request.
        row_starts: `[r + 1]`, row i is tokens `row_starts[i] .. row_starts[i + 1] - 1`.
        context_before: `[r]`, tokens of the row's request already in the cache.
        block_tables: for each KV group `[r, width]`: the pool block of positions
            `j * block_size .. (j + 1) * block_size - 1`. Beyond the row's last block, and where a
            window has let a block go, the entry is -1 and must not be followed.
        logit_rows: `[m]`, ascending indices into the n tokens: those whose logits are wanted.
    """

    token_ids: Int32Array
    positions: Int32Array
    row_starts: Int32Array
    context_before: Int32Array
    block_tables: tuple[Int32Array, ...]
    logit_rows: Int32Array

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def num_rows(self) -> int:
        return int(self.context_before.shape[0])
