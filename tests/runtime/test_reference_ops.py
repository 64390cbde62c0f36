"""The reference ops against definitions written out in float64 loops, and the paged cache beneath them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ridgeline.facts.kv_layout import KvGroup, KvLayout
from ridgeline.facts.model_spec import RopeSpec
from ridgeline.runtime.batch import Batch
from ridgeline.runtime.ops import AttentionSpec
from ridgeline.runtime.reference.kv import KvCache, rotated, to_bf16, to_int8
from ridgeline.runtime.reference.ops import ReferenceOps, gelu_tanh, silu
from ridgeline.runtime.reference.weight import Matrix
from ridgeline.runtime.rope import inverse_frequencies

LAYOUT = KvLayout((KvGroup("full", (0, 1), None), KvGroup("window", (2,), 5)), 2, 2, 8, 4, block_size=4)
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def batch_of(starts: list[int], counts: list[int], logit_rows: list[int] | None = None) -> Batch:
    """Rows with scattered blocks of their own in each group."""
    width, rows = 30, len(starts)
    order = np.random.default_rng(1).permutation(2 * rows * width).astype(np.int32)
    edges = np.cumsum([0, *counts]).astype(np.int32)
    positions = np.concatenate([np.arange(s, s + c) for s, c in zip(starts, counts, strict=True)])
    return Batch(
        token_ids=np.arange(edges[-1], dtype=np.int32),
        positions=positions.astype(np.int32),
        row_starts=edges,
        context_before=np.array(starts, np.int32),
        block_tables=tuple(order.reshape(2, rows, width)),
        logit_rows=np.array(logit_rows or [], np.int32),
    )


def attention_by_hand(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, at: int, spec: AttentionSpec
) -> list[np.ndarray]:
    """One token at position `at`: float64, one head at a time."""
    out = []
    for head in range(spec.num_heads):
        shared = head // (spec.num_heads // spec.num_kv_heads)
        first = 0 if spec.window is None else max(0, at - spec.window + 1)
        scores = [spec.scale * float(np.dot(q[head], keys[p, shared])) for p in range(first, at + 1)]
        if spec.softcap:
            scores = [spec.softcap * math.tanh(s / spec.softcap) for s in scores]
        shares = np.exp(np.array(scores) - max(scores))
        out.append((shares[:, None] * values[first : at + 1, shared]).sum(0) / shares.sum())
    return out


@pytest.mark.parametrize(("layer", "window", "softcap"), [(0, None, None), (1, None, 3.0), (2, 5, None)])
def test_paged_attention(layer: int, window: int | None, softcap: float | None) -> None:
    spec = AttentionSpec(layer, 6, 2, 8, 0.3, window, softcap)
    cache = KvCache(LAYOUT, 120)
    cache.pool[:] = np.nan  # what was never written must not be read
    steps = [([0, 0], [70, 3]), ([70, 3], [1, 9]), ([71, 12], [20, 1])]
    keys, values = [np.zeros((0, 2, 8))] * 2, [np.zeros((0, 2, 8))] * 2
    for starts, counts in steps:
        batch, n = batch_of(starts, counts), sum(counts)
        q, k, v = normal(n, 48), normal(n, 16), normal(n, 16)
        out = ReferenceOps(batch, cache).paged_attention(q, k, v, spec).reshape(n, 6, 8)
        for row in range(2):
            mine = slice(batch.row_starts[row], batch.row_starts[row + 1])
            keys[row] = np.concatenate([keys[row], k[mine].reshape(-1, 2, 8)])
            values[row] = np.concatenate([values[row], v[mine].reshape(-1, 2, 8)])
            for token in range(mine.start, mine.stop):
                at = int(batch.positions[token])
                wanted = attention_by_hand(q[token].reshape(6, 8), keys[row], values[row], at, spec)
                assert np.abs(out[token] - wanted).max() < 1e-5


def test_a_window_never_follows_a_block_that_was_let_go() -> None:
    spec = AttentionSpec(2, 6, 2, 8, 0.3, window=5)
    cache = KvCache(LAYOUT, 120)
    first, second = batch_of([0], [90]), batch_of([90], [1])
    q, k, v = normal(91, 48), normal(91, 16), normal(91, 16)
    ReferenceOps(first, cache).paged_attention(q[:90], k[:90], v[:90], spec)
    kept = ReferenceOps(second, cache).paged_attention(q[90:], k[90:], v[90:], spec)
    second.block_tables[1][0, : (90 - 5) // 4] = -1
    cache.pool[-1] = np.nan
    assert np.array_equal(ReferenceOps(second, cache).paged_attention(q[90:], k[90:], v[90:], spec), kept)


@pytest.mark.parametrize("rotary_dim", [8, 4])
def test_rope_turns_pairs(rotary_dim: int) -> None:
    rope, batch = RopeSpec(100.0, rotary_dim), batch_of([3], [4])
    x = normal(4, 16)
    out = ReferenceOps(batch, KvCache(LAYOUT, 1)).rope(x, rope, 8).reshape(4, 2, 8)
    half = rotary_dim // 2
    for token in range(4):
        for i in range(half):
            angle = (3 + token) * 100.0 ** (-2 * i / rotary_dim)
            turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            pairs = x[token].reshape(2, 8)[:, [i, i + half]]
            assert np.abs(out[token][:, [i, i + half]] - pairs @ turn.T).max() < 1e-6
    assert np.array_equal(out[..., rotary_dim:], x.reshape(4, 2, 8)[..., rotary_dim:])


def test_rope_scaling() -> None:
    plain = inverse_frequencies(RopeSpec(10000.0, 64))
    assert np.allclose(inverse_frequencies(RopeSpec(10000.0, 64, ("linear", 4.0))), plain / 4)
    factors = tuple(float(i + 1) for i in range(32))
    assert np.allclose(inverse_frequencies(RopeSpec(10000.0, 64, None, factors)), plain / factors)
    llama3 = inverse_frequencies(RopeSpec(10000.0, 64, ("llama3", 8.0, 1.0, 4.0, 8192.0)))
    assert np.allclose(llama3[:10], plain[:10])
    assert llama3[-1] == pytest.approx(plain[-1] / 8)
    assert np.all(np.diff(llama3) < 0)
    with pytest.raises(ValueError, match="yarn"):
        inverse_frequencies(RopeSpec(10000.0, 64, ("yarn", 4.0)))


def test_norm_linear_and_mlp() -> None:
    ops = ReferenceOps(batch_of([0], [3], [2]), KvCache(LAYOUT, 1))
    x, w = normal(3, 12), normal(4)
    norm = ops.rms_norm(x, w, 1e-5).reshape(3, 3, 4)
    groups = x.reshape(3, 3, 4).astype(np.float64)
    wanted = groups / np.sqrt((groups**2).mean(-1, keepdims=True) + 1e-5) * w
    assert np.abs(norm - wanted).max() < 1e-6
    matrix = Matrix(normal(5, 12), normal(5))
    assert matrix.bias is not None
    assert np.abs(ops.linear(x, matrix) - (x @ matrix.values.T + matrix.bias)).max() < 1e-5
    gate_up, down = Matrix(normal(14, 12)), Matrix(normal(12, 7))
    gate, up = x @ gate_up.values[:7].T, x @ gate_up.values[7:].T
    wanted = (gate / (1 + np.exp(-gate)) * up) @ down.values.T
    assert np.abs(ops.gated_mlp(x, gate_up, down, "silu") - wanted).max() < 1e-4
    assert np.array_equal(ops.select_logit_rows(x), x[2:])
    assert ops.logits(x[:0], matrix).shape == (0, 5)
    assert np.abs(ops.logits(x * 100, Matrix(matrix.values), 30.0)).max() <= 30


def test_embedding() -> None:
    table, ops = Matrix(normal(9, 6)), ReferenceOps(batch_of([0], [3]), KvCache(LAYOUT, 1))
    assert np.array_equal(ops.embed(table), table.values[:3])
    assert np.array_equal(ops.embed(table, 2.0), table.values[:3] * 2)


def test_activations_at_the_ends() -> None:
    x = np.array([-1e4, -1.0, 0.0, 1.0, 1e4], np.float32)
    assert np.allclose(silu(x), [0, -0.26894143, 0, 0.7310586, 1e4])
    assert np.allclose(gelu_tanh(x[1:4]), [-0.15880801, 0, 0.841192], atol=1e-6)


def test_bf16_rounds_to_nearest_even() -> None:
    x = np.array([1.0, 1.00390625, 1.01171875, 1.005, -3.1415927, 0.0], np.float32)
    assert to_bf16(x).tolist() == [1.0, 1.0, 1.015625, 1.0078125, -3.140625, 0.0]


def test_rotation_is_orthogonal_and_its_own_inverse() -> None:
    for dim in (8, 24, 64, 80):
        x, y = normal(5, 2, dim), normal(5, 2, dim)
        assert np.allclose(rotated(rotated(x)), x, atol=1e-5)
        assert np.allclose((rotated(x) * rotated(y)).sum(-1), (x * y).sum(-1), atol=1e-4)


def test_int8_keeps_the_largest_and_is_half_a_step_off_at_most() -> None:
    x = normal(7, 2, 64)
    largest = np.abs(x).max(axis=-1, keepdims=True)
    error = np.abs(to_int8(x) - x)
    assert (error <= largest / 127 * 0.501).all()
    assert (error[np.abs(x) == largest[..., :1]] < 1e-6).all()
    assert not to_int8(np.zeros((1, 1, 16), np.float32)).any()


def test_an_int8_cache_rotates_keys_and_rounds_both() -> None:
    batch = batch_of([0], [2])
    k, v = normal(2, 2, 8), normal(2, 2, 8)
    cache = KvCache(LAYOUT, 120, dtype="int8")
    cache.write(batch, 2, k, v)
    keys, values = cache.read(batch, 0, 2, 0, 2)
    assert np.array_equal(keys, rotated(to_int8(rotated(k)))) and np.array_equal(values, to_int8(v))


def test_cached_numbers_are_rounded_where_the_cache_is_bf16() -> None:
    batch = batch_of([0], [2])
    k, v = normal(2, 2, 8), normal(2, 2, 8)
    cache = KvCache(LAYOUT, 120, dtype="bf16")
    cache.write(batch, 2, k, v)
    keys, values = cache.read(batch, 0, 2, 0, 2)
    assert np.array_equal(keys, to_bf16(k)) and np.array_equal(values, to_bf16(v))
