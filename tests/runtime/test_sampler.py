"""The sampler: known answers, distributions, truncation, and that no row depends on another."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.engine.sampling_params import SamplingParams
from ridgeline.runtime.philox import philox, uniform
from ridgeline.runtime.sampler import SampleRow, exp2, logprobs_of, sample, top_ids


def row(
    params: SamplingParams, *, seed: int = 0, tokens: list[int] | None = None, num_prompt: int = 1,
    stops: list[int] | None = None,
) -> SampleRow:  # fmt: skip
    known = np.array(tokens or [1], np.int32)
    return SampleRow(params, seed, len(known), known, num_prompt, np.array(stops or [], np.int32))


def one(logits: np.ndarray, params: SamplingParams, **about: object) -> int:
    return int(sample(logits[None].copy(), [row(params, **about)]).tokens[0])  # type: ignore[arg-type]


def kept(logits: np.ndarray, params: SamplingParams, draws: int = 400) -> set[int]:
    rows = [row(params, seed=seed) for seed in range(draws)]
    return set(sample(np.repeat(logits[None], draws, axis=0), rows).tokens.tolist())


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's kat_vectors, philox4x32 10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple, key: tuple, expected: tuple) -> None:
    words = philox(
        tuple(np.array([w], np.uint64) for w in counter), tuple(np.array([w], np.uint64) for w in key)
    )
    assert tuple(int(w[0]) for w in words) == expected


def test_uniform_is_flat_and_keyed() -> None:
    numbers = uniform([5] * 20_000, list(range(20_000)))
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01
    assert np.histogram(numbers, 10, (0, 1))[0].std() < 100
    assert uniform([-1], [3])[0] == uniform([2**64 - 1], [3])[0]
    assert len({uniform([s], [p])[0] for s in range(20) for p in range(20)}) == 400


def test_greedy_takes_the_lowest_id_on_ties() -> None:
    logits = np.array([[0, 3, 1, 3], [2, 2, 2, 2]], np.float32)
    assert sample(logits, [row(SamplingParams(temperature=0))] * 2).tokens.tolist() == [1, 0]


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    rows = [row(SamplingParams(), seed=seed) for seed in range(20_000)]
    counts = np.bincount(sample(np.repeat(logits[None], len(rows), axis=0), rows).tokens, minlength=4)
    assert np.abs(counts / len(rows) - [0.5, 0.25, 0.15, 0.1]).max() < 0.012


def test_top_k_top_p_and_min_p_keep_what_they_should() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.3, 0.2], np.float32))
    assert kept(logits, SamplingParams()) == {0, 1, 2, 3}
    assert kept(logits, SamplingParams(top_k=2)) == {1, 2}
    assert kept(logits, SamplingParams(top_k=1)) == {1}
    assert kept(logits, SamplingParams(top_p=0.5)) == {1, 2}
    assert kept(logits, SamplingParams(top_p=0.39)) == {1}
    assert kept(logits, SamplingParams(min_p=0.6)) == {1, 2}
    assert kept(logits, SamplingParams(top_k=3, top_p=0.75)) == {1, 2}  # .4 + .3 of .9 is .78
    assert kept(logits, SamplingParams(temperature=0.01)) == {1}


def test_a_tiny_temperature_is_the_likeliest_token() -> None:
    logits = np.array([1, 2, 2.001, -5], np.float32)
    assert kept(logits, SamplingParams(temperature=1e-30), draws=20) == {2}


def naive(logits: np.ndarray, params: SamplingParams, number: float) -> int:
    """What is meant, in floats: sort everything, cut, walk over the kept tokens by id."""
    x = (logits - logits.max()).astype(np.float64) / params.temperature
    order = sorted(range(len(x)), key=lambda i: (-x[i], i))
    shares = np.exp(x)
    kept = [i for i in order if shares[i] >= params.min_p]
    kept = kept[: params.top_k or None]
    target, count, reached = params.top_p * math.fsum(shares[kept]), 0, 0.0
    while reached < target and count < len(kept):
        reached += shares[kept[count]]
        count += 1
    kept = sorted(kept[:count])
    target, reached = number * math.fsum(shares[kept]), 0.0
    for index in kept:
        reached += shares[index]
        if reached > target:
            return index
    return kept[-1]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    spread=st.sampled_from([0.01, 1.0, 4.0, 12.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.999]),
    top_k=st.sampled_from([0, 1, 7, 300, 10_000]),
    min_p=st.sampled_from([0.0, 0.05, 1e-5]),
)
def test_agrees_with_what_is_meant(
    seed: int, spread: float, temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    logits = (np.random.default_rng(seed).standard_normal((3, 611)) * spread).astype(np.float32)
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    rows = [row(params, seed=seed + i) for i in range(3)]
    tokens = sample(logits.copy(), rows).tokens.tolist()
    numbers = uniform([r.seed for r in rows], [r.position for r in rows])
    wanted = [naive(logits[i], params, float(numbers[i])) for i in range(3)]
    # A number on the border of two tokens, or a cut between two equal shares, may fall on either side.
    assert sum(t != w for t, w in zip(tokens, wanted, strict=True)) <= 1


def test_shares_are_exponentials() -> None:
    x = -np.abs(np.random.default_rng(0).standard_normal(100_000) * 12).astype(np.float32)
    np.testing.assert_allclose(exp2(x), np.exp2(np.maximum(x, -60).astype(np.float64)), rtol=3e-7)
    assert exp2(np.array([0.0, -0.0, -1.0, -7.0, -np.inf], np.float32)).tolist() == [1, 1, 0.5, 2**-7, 2**-60]


def test_a_row_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(1)
    logits = (rng.standard_normal((40, 5003)) * 3).astype(np.float32)
    variety = [
        SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(top_k=5),
        SamplingParams(min_p=0.1, temperature=2.0), SamplingParams(repetition_penalty=1.3),
        SamplingParams(frequency_penalty=0.5, presence_penalty=0.2, logprobs=3),
        SamplingParams(temperature=30.0),
    ]  # fmt: skip
    rows = [row(variety[i % 8], seed=i, tokens=[3, 4, 5, 5, i], num_prompt=2) for i in range(40)]
    together = sample(logits.copy(), rows)
    for i in range(40):
        alone = sample(logits[i : i + 1].copy(), rows[i : i + 1])
        assert alone.tokens[0] == together.tokens[i]
        assert alone.logprobs[0] == together.logprobs[i]


def test_bias_and_penalties() -> None:
    logits = np.array([1.0, 2.0, 3.0, -1.0], np.float32)
    greedy = {"temperature": 0.0}
    assert one(logits, SamplingParams(**greedy, logit_bias={0: 5.0, 9999: 1.0})) == 0
    assert one(logits, SamplingParams(**greedy, repetition_penalty=2.0), tokens=[2]) == 1  # the prompt counts
    assert one(logits, SamplingParams(**greedy, presence_penalty=1.5), tokens=[2]) == 2  # the prompt does not
    assert one(logits, SamplingParams(**greedy, presence_penalty=1.5), tokens=[0, 2]) == 1
    assert one(logits, SamplingParams(**greedy, frequency_penalty=0.6), tokens=[0, 2]) == 2
    assert one(logits, SamplingParams(**greedy, frequency_penalty=0.6), tokens=[0, 2, 2]) == 1


def test_a_repetition_penalty_lowers_negative_logits_too() -> None:
    logits = np.array([-1.0, -1.5], np.float32)
    assert one(logits, SamplingParams(temperature=0, repetition_penalty=2.0), tokens=[0]) == 1


def test_min_tokens_masks_stop_tokens() -> None:
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    params = SamplingParams(temperature=0, min_tokens=2, max_tokens=9)
    assert one(logits, params, tokens=[0, 1], stops=[2]) == 1
    assert one(logits, params, tokens=[0, 1, 1], stops=[2]) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_fail_their_row_alone(bad: float, temperature: float) -> None:
    logits = np.array([[0, 1, 2], [0, bad, 1], [5, 1, 2]], np.float32)
    result = sample(logits, [row(SamplingParams(temperature=temperature, top_k=1, logprobs=1))] * 3)
    assert result.tokens.tolist() == [2, -1, 0]
    assert [error is not None for error in result.errors] == [False, True, False]
    assert result.logprobs[1] is None


def test_logprobs_are_those_before_temperature_and_truncation() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.3, 0.2], np.float32))
    params = SamplingParams(temperature=0.1, top_k=1, logprobs=2)
    result = sample(logits[None].copy(), [row(params)]).logprobs[0]
    assert result is not None
    assert (result.token_id, result.rank, result.top_ids) == (1, 1, (1, 2))
    assert result.top_logprobs == pytest.approx((math.log(0.4), math.log(0.3)), abs=1e-6)


def test_ranks_and_ties() -> None:
    logits = np.array([[1, 3, 3, 0, 3]], np.float32)
    assert top_ids(logits[0], 2).tolist() == [1, 2]
    assert top_ids(logits[0], 0).tolist() == []
    assert top_ids(logits[0], 99).tolist() == [1, 2, 4, 0, 3]
    assert logprobs_of(logits, np.array([0], np.int32), 1)[0].rank == 4
    for token in range(5):  # a token among the likeliest has the rank of its place there
        own = logprobs_of(logits, np.array([token], np.int32), 5)[0]
        assert own.rank == own.top_ids.index(token) + 1
