"""The native sampler chooses, on every tier, exactly the tokens of the definition in runtime/sampler.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.engine.sampling_params import SamplingParams
from ridgeline.runtime.philox import uniform
from ridgeline.runtime.sampler import ROW, SampleRow, logprobs_of, record, sample

native = pytest.importorskip("ridgeline.runtime.native._native")

TIERS = native.available_tiers()
POOLS = {(tier, threads): native.ThreadPool(threads, tier) for tier in TIERS for threads in (1, 2)}


def rows_of(params: list[SamplingParams], seed: int, length: int, vocab: int) -> list[SampleRow]:
    """One row for each, with tokens of its own (the first third a prompt), some beyond the vocabulary."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, one in enumerate(params):
        tokens = rng.integers(0, vocab + 2, length + i).astype(np.int32)
        rows.append(SampleRow(one, seed + i, len(tokens), tokens, length // 3, np.empty(0, np.int32)))
    return rows


def native_tokens(logits: np.ndarray, rows: list[SampleRow], tier: str, threads: int = 2) -> np.ndarray:
    records = np.array([record(row.params, row.seed, row.num_prompt) for row in rows], ROW)
    lengths = np.array([row.position for row in rows], np.int32)
    store = np.full((len(rows), lengths.max() + 1), -1, np.int32)
    for i, row in enumerate(rows):
        store[len(rows) - 1 - i, : len(row.tokens)] = row.tokens
    slots = np.arange(len(rows) - 1, -1, -1, dtype=np.int32)
    tokens = np.full(len(rows), -7, np.int32)
    records = records.view(np.uint8).reshape(len(rows), -1)
    native.sample(POOLS[tier, threads], logits, records, store, slots, lengths, tokens, tier=tier)
    return tokens


def logits_of(kind: str, num_rows: int, vocab: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, vocab)).astype(np.float32)
    if kind == "equal":
        x[:] = 1.5
    elif kind == "flat":
        x *= np.float32(0.01)
    elif kind == "peaked":
        x *= np.float32(2)
        x[np.arange(num_rows), rng.integers(0, vocab, num_rows)] += np.float32(14)
    elif kind == "ties":
        x = np.rint(x * 3).astype(np.float32)
    elif kind == "masked":
        x[rng.random(x.shape) < 0.7] = -np.inf
        x[:, vocab // 2] = 0
    elif kind == "far":
        x = x * np.float32(300) - np.float32(1e4)
    return x


KINDS = ["equal", "flat", "normal", "peaked", "ties", "masked", "far"]

parameters = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-9, 0.3, 0.7, 1.0, 2.5, 100.0]),
    top_p=st.sampled_from([1.0, 0.999999, 0.95, 0.9, 0.5, 0.1, 1e-9]),
    top_k=st.sampled_from([0, 1, 2, 20, 50, 1000, 2**31 - 1]),
    min_p=st.sampled_from([0.0, 1e-12, 1e-5, 1 / 1024, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.1, 0.7]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.5, -1.1]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.3, -0.2]),
)


@settings(max_examples=300, deadline=None)
@given(
    params=st.lists(parameters, min_size=1, max_size=5),
    kind=st.sampled_from(KINDS),
    vocab=st.one_of(st.integers(1, 70), st.sampled_from([1023, 1024, 1025, 5003])),
    seed=st.integers(0, 2**63),
    length=st.integers(0, 40),
)
def test_the_same_token_on_every_tier(
    params: list[SamplingParams], kind: str, vocab: int, seed: int, length: int
) -> None:
    logits = logits_of(kind, len(params), vocab, seed)
    rows = rows_of(params, seed, length, vocab)
    defined = logits.copy()
    wanted = sample(defined, rows).tokens
    for tier in TIERS:
        given_logits = logits.copy()
        assert native_tokens(given_logits, rows, tier).tolist() == wanted.tolist()
        assert np.array_equal(given_logits, defined)  # penalties, to the bit


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", [49_152, 262_144])
def test_large_vocabularies(tier: str, kind: str, vocab: int) -> None:
    variety = [
        SamplingParams(),
        SamplingParams(top_p=0.9),
        SamplingParams(top_p=0.999),
        SamplingParams(top_k=40),
        SamplingParams(top_k=64, top_p=0.95),
        SamplingParams(top_k=100_000, top_p=0.7, temperature=3.0),
        SamplingParams(min_p=0.05),
        SamplingParams(min_p=1e-6, top_p=0.95),
        SamplingParams(temperature=0),
        SamplingParams(temperature=0.6),
    ]
    rows = rows_of(variety, 11, 30, vocab)
    logits = logits_of(kind, len(rows), vocab, 5)
    assert native_tokens(logits.copy(), rows, tier).tolist() == sample(logits.copy(), rows).tokens.tolist()


@pytest.mark.parametrize("tier", TIERS)
def test_a_row_does_not_depend_on_the_others_or_on_threads(tier: str) -> None:
    variety = [SamplingParams(top_p=0.9), SamplingParams()]
    variety += [SamplingParams(top_k=5), SamplingParams(temperature=9)]
    rows = rows_of([variety[i % 4] for i in range(33)], 3, 20, 5003)
    logits = logits_of("normal", 33, 5003, 9)
    together = native_tokens(logits.copy(), rows, tier)
    assert np.array_equal(together, native_tokens(logits.copy(), rows, tier, threads=1))
    for i in (0, 1, 2, 3, 31, 32):
        assert native_tokens(logits[i : i + 1].copy(), rows[i : i + 1], tier)[0] == together[i]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_not_finite_have_no_token(tier: str, bad: float, temperature: float) -> None:
    logits = logits_of("normal", 4, 999, 0)
    logits[1, 998] = bad
    logits[3] = -np.inf
    rows = rows_of([SamplingParams(temperature=temperature, top_p=0.9)] * 4, 0, 5, 999)
    tokens = native_tokens(logits, rows, tier)
    assert (tokens >= 0).tolist() == [True, False, True, False]


@pytest.mark.parametrize("tier", TIERS)
def test_draws_follow_the_distribution(tier: str) -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    rows = rows_of([SamplingParams()] * 20_000, 0, 0, 4)
    tokens = native_tokens(np.repeat(logits[None], len(rows), axis=0), rows[:1] * len(rows), tier)
    assert len(set(tokens.tolist())) == 1  # one seed, one position
    records = np.array([record(SamplingParams(), seed, 0) for seed in range(20_000)], ROW)
    zeros = np.zeros(20_000, np.int32)
    native.sample(
        POOLS[tier, 2], np.repeat(logits[None], 20_000, axis=0), records.view(np.uint8).reshape(20_000, -1),
        np.zeros((1, 1), np.int32), zeros, zeros, tokens, tier=tier,
    )  # fmt: skip
    assert np.abs(np.bincount(tokens, minlength=4) / 20_000 - [0.5, 0.25, 0.15, 0.1]).max() < 0.012


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    vocab=st.sampled_from([1, 3, 17, 1024, 1025, 5003]),
    num_top=st.integers(0, 20),
    seed=st.integers(0, 2**32),
)
def test_logprobs_are_those_of_the_definition(kind: str, vocab: int, num_top: int, seed: int) -> None:
    from ridgeline.runtime.native.backend import NativeBackend

    logits = logits_of(kind, 4, vocab, seed)
    tokens = np.random.default_rng(seed).integers(0, vocab, 4).astype(np.int32)
    wanted = logprobs_of(logits, tokens, num_top)
    for tier in TIERS:
        backend = NativeBackend(
            weights="int8", head_weights="int8", num_threads=1, max_num_batched_tokens=1, max_model_len=1,
            tier=tier,
        )  # fmt: skip
        assert backend.logprobs_of(logits, tokens, num_top) == wanted


def test_philox_is_that_of_python() -> None:
    seeds = [0, 1, 2**64 - 1, 0x299F31D0A4093822, 12345]
    positions = [0, 7, 2**40 + 3, 2**31, 99]
    assert [native.philox_uniform(s, p) for s, p in zip(seeds, positions, strict=True)] == uniform(
        seeds, positions
    ).tolist()


def test_sizes_and_ids_are_checked() -> None:
    pool, logits = POOLS[TIERS[0], 1], np.zeros((2, 5), np.float32)
    records = np.zeros(2, ROW).view(np.uint8).reshape(2, -1)
    store, zeros = np.zeros((1, 4), np.int32), np.zeros(2, np.int32)
    good = [logits, records, store, zeros, zeros, zeros.copy()]
    native.sample(pool, *good, tier=TIERS[0])
    cases = [
        (1, records[:1], "rows"),
        (1, np.zeros((2, 8), np.uint8), "rows"),
        (3, zeros + 1, "slots"),
        (3, zeros - 1, "slots"),
        (4, zeros + 5, "lengths"),
        (4, zeros[:1], "lengths"),
        (0, np.zeros((2, 0), np.float32), "logits"),
    ]
    for at, wrong, name in cases:
        with pytest.raises(ValueError, match=name):
            native.sample(pool, *[wrong if i == at else value for i, value in enumerate(good)], tier=TIERS[0])
