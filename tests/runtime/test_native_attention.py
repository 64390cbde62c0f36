"""Paged attention and the KV cache on every tier of this machine: against float64, and bit against bit."""

from __future__ import annotations

import numpy as np
import pytest

from ridgeline.runtime.reference.kv import rotated, stored_as
from tests.runtime.attention_case import Sequences, round_to_bf16

native = pytest.importorskip("ridgeline.runtime.native._native")

TIERS = native.available_tiers()
HEADS = [(2, 2, 64), (6, 2, 64), (4, 1, 96), (8, 1, 128), (3, 1, 256), (5, 1, 80), (40, 1, 32), (71, 1, 64)]
"""(num_heads, num_kv_heads, head_dim): groups of 1, 3, 4, 8, odd ones, and more than a tile has rows."""


@pytest.fixture(scope="module", params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pool(tier: str):
    return native.ThreadPool(2, tier)


@pytest.fixture(params=[False, True], ids=["bf16", "int8"])
def int8(request: pytest.FixtureRequest) -> bool:
    return request.param


def check(sequences: Sequences, results: list[np.ndarray]) -> None:
    for request, y in enumerate(results):
        error = np.abs(y - sequences.expected(request))
        assert error.max() < 0.04  # q and the probabilities are rounded to eight bits
        assert error.mean() < 0.003


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("block_size", [16, 32])
def test_whole_prompts(tier, pool, int8, heads, block_size):
    sequences = Sequences(
        native, tier, [1, 45, 270 if heads[0] < 40 else 50], *heads, block_size=block_size, int8=int8
    )
    check(sequences, sequences.run(pool, chunk=1000, together=True))


@pytest.mark.parametrize("block_size", [48, 64, 256])
def test_other_block_sizes(tier, pool, int8, block_size):
    sequences = Sequences(native, tier, [300, 45], block_size=block_size, int8=int8)
    check(sequences, sequences.run(pool, chunk=101, together=True))


@pytest.mark.parametrize("window", [1, 7, 32, 100, 256, 5000])
@pytest.mark.parametrize("chunk", [37, 1000])
def test_windows(tier, pool, int8, window, chunk):
    sequences = Sequences(native, tier, [600, 83], window=window, int8=int8)
    check(sequences, sequences.run(pool, chunk, together=True))


def test_softcap(tier, pool, int8):
    sequences = Sequences(native, tier, [70, 300], softcap=1.5, int8=int8)
    check(sequences, sequences.run(pool, 64, together=True))


@pytest.mark.parametrize(
    ("heads", "window", "block_size"),
    [((6, 2, 64), 0, 32), ((6, 2, 64), 100, 16), ((4, 1, 96), 100, 32), ((8, 1, 128), 0, 16)],
    ids=str,
)
def test_bits_do_not_depend_on_chunks_batch_or_threads(tier, pool, int8, heads, window, block_size):
    lengths = [530, 1, 17, 256, 33, 300, 100]
    sequences = Sequences(native, tier, lengths, *heads, window=window, block_size=block_size, int8=int8)
    alone = native.ThreadPool(1, tier)
    whole = sequences.run(alone, chunk=1000, together=False)
    check(sequences, whole)
    assert same(whole, sequences.run(pool, chunk=1000, together=True))
    assert same(whole, sequences.run(pool, chunk=37, together=True))
    assert same(whole, sequences.run(alone, chunk=128, together=True, workspace_floats=1 << 22))
    assert same(whole, sequences.run(pool, chunk=1, together=True))
    assert same(whole, sequences.run(pool, chunk=19, together=False, workspace_floats=1 << 22))


def test_prefill_beside_decode(tier, pool, int8):
    sequences = Sequences(native, tier, [700, 320, 90], int8=int8)
    whole = sequences.run(pool, chunk=1000, together=True)
    fresh = Sequences(native, tier, [700, 320, 90], int8=int8)
    fresh.step(pool, [(0, 0, 699), (2, 0, 50)])
    decoded, prompt, chunk = fresh.step(pool, [(0, 699, 1), (1, 0, 320), (2, 50, 31)])
    assert same([decoded, prompt, chunk], [whole[0][699:], whole[1], whole[2][50:81]])


@pytest.mark.parametrize("window", [0, 300])
def test_long_contexts_are_cut_among_threads_with_the_same_bits(tier, int8, window):
    sequences = Sequences(native, tier, [1400, 260], num_heads=3, num_kv_heads=1, window=window, int8=int8)
    whole = sequences.run(native.ThreadPool(1, tier), chunk=2000, together=False)
    steps = [(0, 1399, 1), (1, 258, 2)]
    expected = [whole[r][start : start + count] for r, start, count in steps]
    for num_threads in (2, 3, 5):
        pool = native.ThreadPool(num_threads, tier)
        for workspace_floats in (0, 100, 1 << 20):
            assert same(sequences.step(pool, steps, workspace_floats), expected)


def test_a_request_without_tokens_in_the_step(tier, pool):
    sequences = Sequences(native, tier, [40, 50])
    whole = sequences.run(pool, 100, together=True)
    first, none, second = sequences.step(pool, [(0, 39, 1), (1, 20, 0), (1, 49, 1)])
    assert none.shape == (0, 256)
    assert same([first, second], [whole[0][39:], whole[1][49:]])


def test_a_nan_stays_in_its_request(tier, pool, int8):
    sequences = Sequences(native, tier, [64, 64], int8=int8)
    sequences.v[0][5] = np.nan
    poisoned, clean = sequences.run(pool, 100, together=True)
    assert np.isnan(poisoned[5:]).all()
    assert not np.isnan(clean).any()


@pytest.mark.parametrize("scale", [1e-30, 30.0])
def test_flat_and_peaked_scores(tier, pool, int8, scale):
    sequences = Sequences(native, tier, [300], int8=int8)
    sequences.scale = scale
    (y,) = sequences.run(pool, 100, together=True)
    assert np.isfinite(y).all()
    if scale < 1:
        assert np.abs(y - sequences.expected(0)).max() < 0.02


@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_layout_of_the_cache(tier, pool, block_size):
    sequences = Sequences(native, tier, [2 * block_size + 5], head_dim=48, block_size=block_size)
    sequences.run(pool, 21, together=True)
    pages = sequences.pages.view(np.uint16).reshape(len(sequences.pages), 2, 2, 2, -1)[:, sequences.slot]
    for position in range(sequences.lengths[0]):
        block, offset = sequences.tables[0, position // block_size], position % block_size
        for head in range(2):
            keys = pages[block, head, 0].reshape(block_size // 16, 24, 16, 2)[offset // 16, :, offset % 16]
            values = pages[block, head, 1].reshape(3, block_size // 2, 16, 2)[:, offset // 2, :, offset % 2]
            for stored, given in ((keys, sequences.k), (values, sequences.v)):
                expected = round_to_bf16(given[0][position, head]).view(np.uint32) >> 16
                assert np.array_equal(stored.ravel(), expected)
    assert (sequences.pages.reshape(len(pages), 2, -1)[:, 1 - sequences.slot] == 0xFF).all()


def test_layout_of_an_int8_cache(tier, pool):
    size, dim = 32, 48
    sequences = Sequences(native, tier, [2 * size + 5], head_dim=dim, block_size=size, int8=True)
    sequences.run(pool, 21, together=True)
    pages = sequences.pages.reshape(len(sequences.pages), 2, 2, -1)[:, sequences.slot]
    stored = stored_as("int8", sequences.k[0], sequences.v[0])
    for position in range(sequences.lengths[0]):
        block, offset = sequences.tables[0, position // size], position % size
        for head in range(2):
            numbers, scales = np.split(pages[block, head], [2 * size * dim])
            keys, values = numbers.view(np.int8).reshape(2, -1)
            key_scale, value_scale = scales.view(np.float32).reshape(2, size)[:, offset]
            keys = keys.reshape(size // 16, dim // 4, 16, 4)[offset // 16, :, offset % 16]
            values = values.reshape(dim // 16, size // 4, 16, 4)[:, offset // 4, :, offset % 4]
            key, value = (x[position, head] for x in stored)
            np.testing.assert_allclose(rotated(keys.ravel() * key_scale), key, rtol=1e-4, atol=2e-6)
            np.testing.assert_array_equal(values.ravel() * value_scale, value)
    assert (sequences.pages.reshape(len(pages), 2, -1)[:, 1 - sequences.slot] == 0xFF).all()


def test_arguments_that_do_not_fit_are_refused(tier, pool):
    sequences = Sequences(native, tier, [40])
    sequences.tables[0, 1] = 99
    with pytest.raises(ValueError, match="block 99"):
        sequences.run(pool, 100, together=True)
    sequences = Sequences(native, tier, [40], slot=2)
    with pytest.raises(ValueError, match="slot"):
        sequences.run(pool, 100, together=True)
