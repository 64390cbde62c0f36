"""Random paged-attention steps and their definition in numpy float64, for the tests of the native kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ridgeline.runtime.reference.kv import stored_as

Row = tuple[int, int, int]
"""(request, start, count)"""


def round_to_bf16(x: np.ndarray) -> np.ndarray:
    """float32 rounded to nearest even at bfloat16's eight bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@dataclass
class Sequences:
    """Requests with all of their tokens known, over a pool of blocks in random order.

    Of each request q is `[tokens, heads, dim]` and k and v are `[tokens, kv_heads, dim]`.
    """

    native: Any
    tier: str
    lengths: list[int]
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 32
    window: int = 0
    softcap: float = 0.0
    num_slots: int = 2
    slot: int = 1
    seed: int = 0
    int8: bool = False
    q: list[np.ndarray] = field(init=False)
    k: list[np.ndarray] = field(init=False)
    v: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.q, self.k, self.v = (
            [rng.standard_normal((n, heads, self.head_dim)).astype(np.float32) for n in self.lengths]
            for heads in (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        )
        self.scale = self.head_dim**-0.5 * 2
        self.blocks = [-(-n // self.block_size) for n in self.lengths]
        num_blocks = sum(self.blocks) + 3
        count = len(self.lengths)
        order = rng.permutation(num_blocks).astype(np.int32)
        self.tables = np.full((count, max(self.blocks)), -1, np.int32)
        for r, blocks in enumerate(self.blocks):
            self.tables[r, :blocks], order = order[:blocks], order[blocks:]
        head_bytes = 2 * (self.head_dim + 4) if self.int8 else 4 * self.head_dim
        page_bytes = self.num_slots * self.num_kv_heads * self.block_size * head_bytes
        # Stale NaNs everywhere: a block comes back to the pool as its last owner left it.
        self.pages = np.full((num_blocks, page_bytes), 0xFF, np.uint8)

    def expected(self, request: int) -> np.ndarray:
        """Dense causal attention in float64 over keys and values as stored: `[tokens, heads * dim]`."""
        group = self.num_heads // self.num_kv_heads
        stored = stored_as("int8" if self.int8 else "bf16", self.k[request], self.v[request])
        k, v = (np.repeat(x.astype(float), group, axis=1) for x in stored)
        scores = np.einsum("qhd,khd->hqk", self.q[request].astype(np.float64), k) * self.scale
        if self.softcap:
            scores = self.softcap * np.tanh(scores / self.softcap)
        distance = np.arange(len(k))[:, None] - np.arange(len(k))
        visible = (distance >= 0) & ((distance < self.window) if self.window else True)
        scores = np.where(visible, scores, -np.inf)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", p, v).reshape(len(k), -1)

    def step(self, pool: Any, spans: list[Row], workspace_floats: int = 0) -> list[np.ndarray]:
        """Run (request, start, count) rows as one step: `[count, heads * dim]` of each."""
        q, k, v = (
            np.concatenate([x[r][a : a + count].reshape(count, x[r][0].size) for r, a, count in spans])
            for x in (self.q, self.k, self.v)
        )
        row_starts = np.cumsum([0] + [count for _, _, count in spans]).astype(np.int32)
        before = np.array([start for _, start, _ in spans], np.int32)
        tables = np.ascontiguousarray(self.tables[[r for r, _, _ in spans]])
        self._forget_before_windows(tables, before)
        shape = (self.slot, self.num_kv_heads, self.head_dim, self.block_size, row_starts, before, tables)
        self.native.kv_write(pool, self.pages, *shape, k, v, int8=self.int8, tier=self.tier)
        y = np.full_like(q, np.nan)
        self.native.attention(
            *(pool, self.pages, *shape, q, y),
            *(self.scale, self.window, self.softcap, workspace_floats),
            int8=self.int8,
            tier=self.tier,
        )
        return [y[a:b] for a, b in pairwise(row_starts)]

    def _forget_before_windows(self, tables: np.ndarray, before: np.ndarray) -> None:
        if self.window:
            for table, start in zip(tables, before, strict=True):
                table[: max(0, start - self.window + 1) // self.block_size] = -1

    def run(self, pool: Any, chunk: int, together: bool, workspace_floats: int = 0) -> list[np.ndarray]:
        """All tokens of all requests, `chunk` a step; one request after the other, or all in each step."""
        results: list[list[np.ndarray]] = [[] for _ in self.lengths]
        groups = [list(range(len(self.lengths)))] if together else [[r] for r in range(len(self.lengths))]
        for requests in groups:
            for start in range(0, max(self.lengths[r] for r in requests), chunk):
                counts = {r: min(chunk, self.lengths[r] - start) for r in requests}
                spans = [(r, start, count) for r, count in counts.items() if count > 0]
                for (r, _, _), y in zip(spans, self.step(pool, spans, workspace_floats), strict=True):
                    results[r].append(y)
        return [np.concatenate(parts) for parts in results]
