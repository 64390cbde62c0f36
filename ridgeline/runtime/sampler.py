"""From logits to tokens: the definition, in numpy, one row at a time.

Order: logit_bias, min_tokens, penalties; then (not for greedy rows) temperature, min_p, top_k, top_p,
and a draw by inverse CDF over the tokens kept, in order of their ids. Log probabilities are
log_softmax after bias, penalties and min_tokens, before temperature.

Backends with a sampler of their own choose exactly the same tokens, because everything that decides is exact:
a token's *share* is 2**((logit - largest) * log2(e) / temperature) as a float32 polynomial whose
operations are rounded one by one, and its *weight* the share in units of 2**-40, rounded. Integers add up to
the same sum in any order. (Shares below 2**-41 weigh nothing: such tokens are never drawn.)

A row's token is a function of its logits, its parameters, its tokens and (seed, position) alone:
nothing here mixes rows, so what else is in the batch cannot change it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ridgeline.engine.logprobs import RawLogprobs
from ridgeline.engine.sampling_params import SamplingParams
from ridgeline.runtime.philox import uniform

Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

LOG2_E = 1.4426950408889634
ONE = 1 << 40
"""The weight of a share of 1, that of the likeliest token."""
LEAST_EXPONENT = np.float32(-60)
"""Shares do not get smaller than 2 to this; they weigh nothing long before."""
EXP2 = tuple(
    np.float32(c) for c in (1.32647273e-3, 9.67151299e-3, 5.55073359e-2, 2.40222424e-1, 6.93147004e-1, 1)
)
"""Minimax polynomial of 2**f on |f| <= 1/2, highest power first; relative error 9e-8."""
MIN_TEMPERATURE = 1e-5
"""A smaller one counts as this: nothing but the likeliest token is left anyway."""
NOT_FINITE = "the model's logits are not finite"

ROW = np.dtype(
    [
        ("seed", np.uint64),
        ("top_p", np.float64),  # 1: all
        ("top_k", np.int64),  # 0: all
        ("scale", np.float32),  # log2(e) / temperature; 0: the likeliest token
        ("min_p", np.float32),  # 0: all
        ("repetition_penalty", np.float32),
        ("presence_penalty", np.float32),
        ("frequency_penalty", np.float32),
        ("num_prompt", np.int32),
    ]
)
"""How one request samples, as the native kernel reads it (csrc/sample_args.hpp)."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """What the sampler must know of one row: its tokens, prompt first, and the `position` of the next."""

    params: SamplingParams
    seed: int
    position: int
    tokens: Int32Array
    num_prompt: int
    stop_token_ids: Int32Array


@dataclass(frozen=True, slots=True)
class Sampled:
    """One entry a row: the token (-1 where `errors` says why there is none) and logprobs if asked for."""

    tokens: Int32Array
    errors: tuple[str | None, ...]
    logprobs: tuple[RawLogprobs | None, ...]


def record(params: SamplingParams, seed: int, num_prompt: int) -> tuple[float, ...]:
    """The fields of `ROW`. top_k of 1 is greedy: that is exact whatever the temperature."""
    drawn = params.temperature > 0 and params.top_k != 1
    return (
        seed & (2**64 - 1),
        params.top_p,
        params.top_k,
        LOG2_E / max(params.temperature, MIN_TEMPERATURE) if drawn else 0.0,
        params.min_p,
        params.repetition_penalty,
        params.presence_penalty,
        params.frequency_penalty,
        num_prompt,
    )


def sample(logits: Array, rows: Sequence[SampleRow]) -> Sampled:
    """Sample one token for each row of `logits` `[m, vocab]` (written into where rows are adjusted)."""
    for logit_row, row in zip(logits, rows, strict=True):
        mask_and_bias(logit_row, row)
        penalize(logit_row, row)
    tokens = np.argmax(logits, axis=1).astype(np.int32)
    finite = np.isfinite(logits[np.arange(len(rows)), tokens])  # argmax stops at the first NaN
    drawn = np.flatnonzero(finite)
    tokens[drawn] = draw(logits, [rows[i] for i in drawn.tolist()], drawn)
    tokens[~finite] = -1
    asking = [i for i in drawn.tolist() if rows[i].params.logprobs is not None]
    logprobs: list[RawLogprobs | None] = [None] * len(rows)
    for i in asking:
        one = slice(i, i + 1)
        logprobs[i] = logprobs_of(logits[one], tokens[one], rows[i].params.logprobs or 0)[0]
    return Sampled(tokens, errors_of(tokens), tuple(logprobs))


def errors_of(tokens: Int32Array) -> tuple[str | None, ...]:
    """What to say of rows without a token."""
    return tuple(None if token >= 0 else NOT_FINITE for token in tokens.tolist())


# ---- What changes logits ----


def needs_mask_or_bias(params: SamplingParams) -> bool:
    """Whether `mask_and_bias` can have anything to do."""
    return bool(params.logit_bias or params.min_tokens)


def mask_and_bias(logits: Array, row: SampleRow) -> None:
    """Add the bias and forbid stop tokens before `min_tokens`, in one row `[vocab]` in place."""
    params = row.params
    if params.logit_bias:
        ids = np.fromiter(params.logit_bias.keys(), np.int64, len(params.logit_bias))
        bias = np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias))
        inside = ids < len(logits)
        logits[ids[inside]] += bias[inside]
    if len(row.tokens) - row.num_prompt < params.min_tokens:
        logits[row.stop_token_ids[row.stop_token_ids < len(logits)]] = -np.inf


def penalize(logits: Array, row: SampleRow) -> None:
    """Lower what has been said: repetition counts the prompt; presence and frequency do not."""
    params = row.params
    tokens = row.tokens[(row.tokens >= 0) & (row.tokens < len(logits))]
    if params.repetition_penalty != 1.0:
        seen = np.unique(tokens)
        penalty = np.float32(params.repetition_penalty)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    generated = row.tokens[row.num_prompt :]
    generated = generated[(generated >= 0) & (generated < len(logits))]
    if params.presence_penalty:
        logits[np.unique(generated)] -= np.float32(params.presence_penalty)
    if params.frequency_penalty:
        np.subtract.at(logits, generated, np.float32(params.frequency_penalty))


# ---- The draw ----


def draw(logits: Array, rows: Sequence[SampleRow], index: Int64Array | None = None) -> Int32Array:
    """One token for each of `rows`; row i has the logits `logits[index[i]]` (`logits[i]` without `index`)."""
    at = range(len(rows)) if index is None else index.tolist()
    records = np.array([record(row.params, row.seed, row.num_prompt) for row in rows], ROW)
    numbers = uniform([row.seed for row in rows], [row.position for row in rows])
    tokens = [draw_row(logits[i], one, float(u)) for i, one, u in zip(at, records, numbers, strict=True)]
    return np.array(tokens, np.int32)


def draw_row(logits: Array, row: np.void, number: float) -> int:
    """The token at `number` in [0, 1) of what `row` (a `ROW`) makes of `logits` `[vocab]`."""
    if row["scale"] == 0:
        return int(np.argmax(logits))
    shares = exp2((logits - logits.max()) * row["scale"])
    weights = weights_of(shares)
    kept = kept_tokens(shares, weights, row)
    reached = np.cumsum(weights if kept is None else weights[kept])
    mass = int(reached[-1])
    target = min(int(number * float(mass)), mass - 1)
    index = int(np.searchsorted(reached, target, side="right"))  # the first that passes it
    return index if kept is None else int(kept[index])


def exp2(x: Array) -> Array:
    """2**x for x <= 0, to about 1e-7; every operation is a float32 one, in this order."""
    x = np.maximum(x, LEAST_EXPONENT)
    n = np.rint(x)
    f = x - n
    p = np.full_like(f, EXP2[0])
    for coefficient in EXP2[1:]:
        p *= f
        p += coefficient
    power = ((n.astype(np.int32) + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * power  # type: ignore[no-any-return]


def weights_of(shares: Array) -> Int64Array:
    """Shares in units of 2**-40, to the nearest, ties to even (the product is exact in float64)."""
    return np.rint(shares.astype(np.float64) * float(ONE)).astype(np.int64)


def kept_tokens(shares: Array, weights: Int64Array, row: np.void) -> Int64Array | None:
    """Ids that min_p, top_k and top_p leave, ascending; None: all. Each keeps a prefix of
    the tokens by falling share, the lower id first on ties."""
    size = len(shares)
    narrowed = row["min_p"] > 0 or 0 < row["top_k"] < size or row["top_p"] < 1
    if not narrowed:
        return None
    order = by_share(shares)
    reached = np.cumsum(weights[order])
    left = size
    if row["min_p"] > 0:
        left = int((shares >= row["min_p"]).sum())
    if row["top_k"] > 0:
        left = min(left, int(row["top_k"]))
    if row["top_p"] < 1:
        mass = int(reached[left - 1])
        needed = min(max(math.ceil(float(row["top_p"]) * float(mass)), 1), mass)
        left = min(left, int(np.searchsorted(reached, needed)) + 1)
    return np.sort(order[:left])


def by_share(shares: Array) -> Int64Array:
    """Ids by falling share, ties by id: (bits of the share, id) sorts as one integer."""
    bits = np.uint64(0x3F800000) - shares.view(np.uint32).astype(np.uint64)
    keys = (bits << np.uint64(32)) | np.arange(len(shares), dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


# ---- Log probabilities ----


def logprobs_of(logits: Array, tokens: Int32Array, num_top: int) -> list[RawLogprobs]:
    """Log probabilities at `logits` `[k, vocab]` of `tokens` `[k]` and of the likeliest `num_top`."""
    result = []
    for row, token in zip(logits, tokens.tolist(), strict=True):
        largest = row.max()
        mass = -1
        if np.isfinite(largest):
            mass = int(weights_of(exp2((row - largest) * np.float32(LOG2_E))).sum())
        above = int((row > row[token]).sum() + (row[:token] == row[token]).sum())
        result.append(raw_logprobs(row, token, mass, above, top_ids(row, num_top)))
    return result


def raw_logprobs(row: Array, token: int, mass: int, above: int, ids: npt.NDArray[np.integer]) -> RawLogprobs:
    """The payload of one position. `mass`: sum of the weights at temperature 1, -1 where not finite."""
    if mass < 0:
        return RawLogprobs(token, math.nan, above + 1, (), ())
    largest = float(row.max()) if len(ids) == 0 else float(row[ids[0]])
    log_mass = largest + math.log(mass / ONE)
    likeliest = tuple(value - log_mass for value in row[ids].tolist())
    return RawLogprobs(token, float(row[token]) - log_mass, above + 1, tuple(ids.tolist()), likeliest)


def top_ids(row: Array, count: int) -> Int64Array:
    """Ids of the `count` largest of `[vocab]`, largest first, the lower id first on ties."""
    count = min(count, len(row))
    if count == 0:
        return np.empty(0, np.int64)
    threshold = np.partition(row, len(row) - count)[len(row) - count]
    ids = np.flatnonzero(row >= threshold)
    return ids[np.argsort(-row[ids], kind="stable")][:count]
