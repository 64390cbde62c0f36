"""Each op in plain numpy float32: the definition that every kernel is tested against.

A token's result must not depend on what else is in the step (batch, chunk boundaries), bit for bit.
BLAS picks its kernel by shape, so matrix products are made of tiles of fixed shape only, padded with
zeros; attention goes over the cache in tiles whose borders are at fixed positions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ridgeline.facts.model_spec import Activation, RopeSpec
from ridgeline.runtime.batch import Batch
from ridgeline.runtime.ops import AttentionSpec
from ridgeline.runtime.reference.kv import KvCache
from ridgeline.runtime.reference.weight import Matrix
from ridgeline.runtime.rope import cos_sin

Array = npt.NDArray[np.float32]

TILE_ROWS = 16
"""Rows of every matrix product."""
QUERY_TILE = 8
"""Tokens of one row that attend together."""
KEY_TILE = 64
"""Cached positions that are attended to at a time."""
NOTHING = np.float32(-1e30)
"""A running maximum before anything was seen: finite, so that exp(-inf - NOTHING) is 0 and not NaN."""


class ReferenceOps:
    """Evaluates each op at once on one batch."""

    def __init__(self, batch: Batch, cache: KvCache) -> None:
        self.batch = batch
        self.cache = cache
        self._angles: dict[RopeSpec, tuple[Array, Array]] = {}

    def embed(self, table: Matrix, scale: float = 1.0) -> Array:
        rows = table.values[self.batch.token_ids]
        return rows if scale == 1.0 else rows * np.float32(scale)

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        groups = x.reshape(len(x), x.shape[1] // len(weight), len(weight))
        mean_square = np.mean(np.square(groups), axis=-1, keepdims=True)
        normal: Array = groups / np.sqrt(mean_square + np.float32(eps)) * weight
        return normal.reshape(x.shape)

    def linear(self, x: Array, weight: Matrix) -> Array:
        """Tiles of TILE_ROWS rows: `[16, in] @ [in, out]` whatever the number of tokens."""
        n = len(x)
        padded = np.zeros((-(-n // TILE_ROWS) * TILE_ROWS, x.shape[1]), np.float32)
        padded[:n] = x
        tiles = [padded[i : i + TILE_ROWS] @ weight.values.T for i in range(0, len(padded), TILE_ROWS)]
        out = (np.concatenate(tiles) if tiles else np.empty((0, len(weight.values)), np.float32))[:n]
        return out if weight.bias is None else out + weight.bias

    def split(self, x: Array, *sizes: int) -> tuple[Array, ...]:
        return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=1))

    def add(self, x: Array, y: Array) -> Array:
        return x + y

    def rope(self, x: Array, rope: RopeSpec, head_dim: int) -> Array:
        """Pairs are (i, i + rotary_dim / 2); features beyond rotary_dim stay."""
        if rope not in self._angles:
            self._angles[rope] = cos_sin(rope, self.batch.positions)
        cos, sin = (table[:, None, :] for table in self._angles[rope])
        half = rope.rotary_dim // 2
        heads = x.reshape(len(x), -1, head_dim).copy()
        first, second = heads[..., :half].copy(), heads[..., half : 2 * half].copy()
        heads[..., :half] = first * cos - second * sin
        heads[..., half : 2 * half] = second * cos + first * sin
        return heads.reshape(x.shape)

    def paged_attention(self, q: Array, k: Array, v: Array, spec: AttentionSpec) -> Array:
        batch, shape = self.batch, (-1, spec.num_kv_heads, spec.head_dim)
        self.cache.write(batch, spec.layer, k.reshape(shape), v.reshape(shape))
        # [n, kv_heads, group, head_dim]: the query heads that share a key head side by side.
        group = spec.num_heads // spec.num_kv_heads
        queries = q.reshape(-1, spec.num_kv_heads, group, spec.head_dim) * np.float32(spec.scale)
        out = np.empty_like(queries)
        for row in range(batch.num_rows):
            first, end = batch.row_starts[row], batch.row_starts[row + 1]
            for i in range(first, end, QUERY_TILE):
                tile = slice(i, min(i + QUERY_TILE, end))
                out[tile] = self._attend(row, queries[tile], int(batch.positions[i]), spec)
        return out.reshape(len(q), -1)

    def _attend(self, row: int, queries: Array, position: int, spec: AttentionSpec) -> Array:
        """Softmax attention of consecutive tokens over the cache, tile by tile.

        The running maximum and sum are those of online softmax (Milakov & Gimelshein 2018).
        `queries`: `[tokens, kv_heads, group, head_dim]`, the first at `position`.
        """
        tokens, kv_heads, group, head_dim = queries.shape
        padded = np.zeros((QUERY_TILE, kv_heads, group, head_dim), np.float32)
        padded[:tokens] = queries
        tile = padded.transpose(1, 0, 2, 3).reshape(kv_heads, QUERY_TILE * group, head_dim)
        query_at = np.repeat(position + np.arange(QUERY_TILE), group)
        oldest = 0 if spec.window is None else max(0, position - spec.window + 1)
        maximum = np.full((kv_heads, QUERY_TILE * group, 1), NOTHING, np.float32)
        total = np.zeros_like(maximum)
        weighted = np.zeros_like(tile)
        for start in range(oldest // KEY_TILE * KEY_TILE, position + tokens, KEY_TILE):
            keys, values = self.cache.read(self.batch, row, spec.layer, start, KEY_TILE)
            scores = softcapped(tile @ keys.transpose(1, 2, 0), spec.softcap)
            seen = visible(query_at, start + np.arange(KEY_TILE), spec.window)
            scores = np.where(seen, scores, np.float32(-np.inf))
            new_maximum = np.maximum(maximum, scores.max(axis=-1, keepdims=True))
            shrink, shares = np.exp(maximum - new_maximum), np.exp(scores - new_maximum)
            total = total * shrink + shares.sum(axis=-1, keepdims=True)
            weighted = weighted * shrink + shares @ values.transpose(1, 0, 2)
            maximum = new_maximum
        # A padding token may see nothing, beyond a window's end: its total is 0, and it is cut off.
        attended: Array = np.divide(weighted, np.maximum(total, np.float32(1e-30)), dtype=np.float32)
        return attended.reshape(kv_heads, QUERY_TILE, group, head_dim).transpose(1, 0, 2, 3)[:tokens]

    def gated_mlp(self, x: Array, gate_up: Matrix, down: Matrix, activation: Activation) -> Array:
        gate, up = (np.ascontiguousarray(half) for half in np.split(self.linear(x, gate_up), 2, axis=1))
        return self.linear(ACTIVATIONS[activation](gate) * up, down)

    def select_logit_rows(self, x: Array) -> Array:
        return x[self.batch.logit_rows]

    def logits(self, x: Array, head: Matrix, softcap: float | None = None) -> Array:
        return softcapped(self.linear(x, head), softcap)


def visible(
    query_at: npt.NDArray[np.int64], key_at: npt.NDArray[np.int64], window: int | None
) -> npt.NDArray[np.bool_]:
    """Which keys each query sees, `[queries, keys]`: up to itself, and of those the last `window`."""
    ahead = query_at[:, None] - key_at
    seen: npt.NDArray[np.bool_] = ahead >= 0 if window is None else (ahead >= 0) & (ahead < window)
    return seen


def softcapped(x: Array, cap: float | None) -> Array:
    """cap * tanh(x / cap), or x where there is no cap."""
    if cap is None:
        return x
    capped: Array = (np.float32(cap) * np.tanh(x / np.float32(cap))).astype(np.float32, copy=False)
    return capped


def silu(x: Array) -> Array:
    """x * sigmoid(x); exp may overflow to inf, which gives the right 0."""
    with np.errstate(over="ignore"):
        return (x / (np.float32(1) + np.exp(-x))).astype(np.float32, copy=False)


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of GELU (Hendrycks & Gimpel 2016)."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    return (np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))).astype(np.float32, copy=False)


ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh}
