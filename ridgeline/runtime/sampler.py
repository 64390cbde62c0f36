"""From logits to tokens: numpy, vectorised over the rows of a step.

Order: logit_bias, penalties, min_tokens; then (not for greedy rows) temperature, min_p, top_k,
top_p, and a draw by inverse CDF over the kept tokens, likeliest first (lower id first on ties).
Log probabilities are log_softmax after bias, penalties and min_tokens, before temperature.

A row's token is a function of its logits, its parameters, its tokens and (seed, position) alone:
nothing here mixes rows, so what else is in the batch cannot change it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ridgeline.engine.logprobs import RawLogprobs
from ridgeline.engine.sampling_params import SamplingParams
from ridgeline.runtime.philox import uniform

Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]

HEAD_DEPTH = np.float32(3.0)
"""Tokens within this of the largest scaled logit are sorted at first; nearly always they decide."""
DEEPER = np.float32(7.0)
"""Those are sorted next, before the whole row."""
MAX_HEAD = 2048
"""A row with more tokens than this in its head is sorted by itself."""
CACHED_VALUES = 1 << 18
"""Logits worked on at a time, so that they stay in the processor's cache."""
NO_LIMIT = np.iinfo(np.int64).max
MIN_TEMPERATURE = 1e-5
"""A smaller one counts as this: nothing but the likeliest token is left anyway."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """What the sampler must know of one row: its tokens, prompt first, and the `position` of the next."""

    params: SamplingParams
    seed: int
    position: int
    tokens: Int32Array
    num_prompt: int
    stop_token_ids: Int32Array
    adjusted: bool = field(default=False)
    """Whether `adjust` has anything to do; see `needs_adjusting`."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One entry a row: the token (-1 where `errors` says why there is none) and logprobs if asked for."""

    tokens: Int32Array
    errors: tuple[str | None, ...]
    logprobs: tuple[RawLogprobs | None, ...]


def needs_adjusting(params: SamplingParams) -> bool:
    """Whether the parameters change logits other than by temperature and truncation."""
    return bool(
        params.logit_bias
        or params.repetition_penalty != 1.0
        or params.presence_penalty
        or params.frequency_penalty
        or params.min_tokens
    )


def sample(logits: Array, rows: list[SampleRow]) -> Sampled:
    """Sample one token for each row of `logits` `[m, vocab]` (written into where rows are adjusted)."""
    for logit_row, row in zip(logits, rows, strict=True):
        if row.adjusted:
            adjust(logit_row, row)
    tokens = np.argmax(logits, axis=1).astype(np.int32)
    best = logits[np.arange(len(rows)), tokens]
    finite = np.isfinite(best)  # argmax stops at the first NaN, so this sees every NaN and +inf
    drawn = np.flatnonzero(finite & np.array([row.params.temperature > 0 for row in rows], bool))
    if len(drawn):
        picked = logits if len(drawn) == len(rows) else logits[drawn]
        tokens[drawn] = draw(picked, [rows[i] for i in drawn])
    tokens[~finite] = -1
    errors = tuple(None if ok else "the model's logits are not finite" for ok in finite)
    logprobs = tuple(
        logprobs_of(logits[i : i + 1], tokens[i : i + 1], row.params.logprobs)[0]
        if row.params.logprobs is not None and finite[i]
        else None
        for i, row in enumerate(rows)
    )
    return Sampled(tokens, errors, logprobs)


def adjust(logits: Array, row: SampleRow) -> None:
    """Apply bias, penalties and the mask of stop tokens to one row `[vocab]` in place."""
    params = row.params
    if params.logit_bias:
        ids = np.fromiter(params.logit_bias.keys(), np.int64, len(params.logit_bias))
        bias = np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias))
        inside = ids < len(logits)
        logits[ids[inside]] += bias[inside]
    if params.repetition_penalty != 1.0:
        seen = np.unique(row.tokens)
        penalty = np.float32(params.repetition_penalty)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    if params.presence_penalty or params.frequency_penalty:
        generated, counts = np.unique(row.tokens[row.num_prompt :], return_counts=True)
        logits[generated] -= np.float32(params.presence_penalty)
        logits[generated] -= np.float32(params.frequency_penalty) * counts.astype(np.float32)
    if len(row.tokens) - row.num_prompt < params.min_tokens:
        logits[row.stop_token_ids] = -np.inf


def draw(logits: Array, rows: list[SampleRow]) -> Int32Array:
    """One token for each row `[m, vocab]` by temperature, truncation and its own random number."""
    limits = Limits.of(rows)
    step = max(1, CACHED_VALUES // logits.shape[1])
    groups = [slice(i, i + step) for i in range(0, len(rows), step)]
    return np.concatenate([_draw(logits[group], limits.at(group)) for group in groups])


def _draw(logits: Array, limits: Limits) -> Int32Array:
    """The likeliest tokens nearly always decide; only then is more of a row sorted, at last all of it."""
    scaled = (logits - logits.max(axis=1, keepdims=True)) / limits.temperature[:, None]
    mass = np.exp(scaled).sum(axis=1).astype(np.float64)
    tokens = np.full(len(logits), -1, np.int32)
    in_head = scaled > -HEAD_DEPTH
    small = np.flatnonzero(in_head.sum(axis=1) <= MAX_HEAD)
    if len(small):
        tokens[small] = _draw_from(scaled[small], in_head[small], mass[small], limits.at(small))
    for i in np.flatnonzero(tokens < 0):
        one = slice(i, i + 1)
        for depth in (DEEPER, np.float32(np.inf)):
            tokens[one] = _draw_from(scaled[one], scaled[one] >= -depth, mass[one], limits.at(one))
            if tokens[i] >= 0:
                break
    return tokens


def _draw_from(
    scaled: Array, in_head: npt.NDArray[np.bool_], mass: npt.NDArray[np.float64], limits: Limits
) -> Int32Array:
    """Draw among the tokens in the heads; -1 where those do not decide."""
    head, ids, sizes = sorted_heads(scaled, in_head)
    index = pick(head, sizes, scaled.shape[1], mass, limits)
    return np.where(index < 0, -1, ids[np.arange(len(ids)), index]).astype(np.int32)


def sorted_heads(
    scaled: Array, in_head: npt.NDArray[np.bool_]
) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each row's values where `in_head`, in descending order, ties by id: (values, ids, sizes).

    `[m, vocab]` -> `[m, width]`, `[m, width]`, `[m]`; values beyond a row's size are -inf. No value is
    positive, and the bits of such floats ascend as the floats descend: (bits, id) sorts as one integer.
    """
    sizes = in_head.sum(axis=1)
    at = np.flatnonzero(in_head)
    row_of, ids = np.divmod(at, scaled.shape[1])
    column = np.arange(len(at)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    keys = np.full((len(scaled), sizes.max()), np.iinfo(np.uint64).max)
    bits = scaled.reshape(-1)[at].view(np.uint32).astype(np.uint64)
    keys[row_of, column] = (bits << np.uint64(32)) | ids.astype(np.uint64)
    keys.sort(axis=1)
    head = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
    head[np.arange(keys.shape[1]) >= sizes[:, None]] = -np.inf
    return head, (keys & np.uint64(0xFFFFFFFF)).astype(np.int64), sizes


@dataclass(frozen=True, slots=True)
class Limits:
    """Parameters of drawn rows as arrays `[m]`."""

    temperature: Array
    min_p: npt.NDArray[np.float64]
    top_k: npt.NDArray[np.int64]
    top_p: npt.NDArray[np.float64]
    uniform: npt.NDArray[np.float64]

    @classmethod
    def of(cls, rows: list[SampleRow]) -> Limits:
        params = [row.params for row in rows]
        return cls(
            temperature=np.array([max(p.temperature, MIN_TEMPERATURE) for p in params], np.float32),
            min_p=np.array([p.min_p for p in params]),
            top_k=np.array([p.top_k or NO_LIMIT for p in params]),
            top_p=np.array([p.top_p for p in params]),
            uniform=uniform([row.seed for row in rows], [row.position for row in rows]),
        )

    def at(self, index: npt.NDArray[np.int64] | slice) -> Limits:
        return Limits(
            self.temperature[index],
            self.min_p[index],
            self.top_k[index],
            self.top_p[index],
            self.uniform[index],
        )


def pick(
    head: Array, sizes: npt.NDArray[np.int64], vocab: int, mass: npt.NDArray[np.float64], limits: Limits
) -> npt.NDArray[np.int64]:
    """The index into each row's head of the token drawn, -1 where the head does not decide it.

    `head` `[m, width]`: a row's largest scaled logits in descending order (maximum 0), `sizes` of
    them, then -inf. `mass`: the sum of exp over the row's whole vocabulary.
    """
    shares = np.exp(head).astype(np.float64)
    reached = np.cumsum(shares, axis=1)
    rows = np.arange(len(head))
    # 1. How many tokens min_p leaves: not known when it leaves the whole head of a larger vocabulary.
    likely = (shares >= limits.min_p[:, None]).sum(axis=1)
    unknown = (limits.min_p > 0) & (likely == sizes) & (sizes < vocab)
    left = np.where((limits.min_p > 0) & ~unknown, likely, vocab)
    # 2. top_k, and the mass that is left.
    left = np.minimum(left, limits.top_k)
    in_head = left <= sizes
    left_mass = np.where(left < vocab, reached[rows, np.minimum(left, sizes) - 1], mass)
    decided = in_head | ((left == vocab) & ~unknown)
    # 3. top_p: the smallest prefix that reaches its share of that mass.
    nucleus = (reached < (limits.top_p * left_mass)[:, None]).sum(axis=1) + 1
    nucleus = np.where(in_head, np.minimum(nucleus, left), nucleus)
    narrowed = limits.top_p < 1
    decided &= ~narrowed | (nucleus <= sizes)
    left = np.where(narrowed, nucleus, left)
    left_mass = np.where(narrowed, reached[rows, np.minimum(nucleus, sizes) - 1], left_mass)
    # 4. The draw: the first token at which the running sum passes it.
    index = (reached <= (limits.uniform * left_mass)[:, None]).sum(axis=1)
    index = np.where(left <= sizes, np.minimum(index, left - 1), index)
    return np.where(decided & (index < sizes), index, -1)


def logprobs_of(logits: Array, tokens: Int32Array, num_top: int) -> list[RawLogprobs]:
    """Log probabilities at `logits` `[k, vocab]` of `tokens` `[k]` and of the likeliest `num_top`."""
    result = []
    for row, token in zip(logits, tokens.tolist(), strict=True):
        top = row.max()
        log_mass = float(top) + float(np.log(np.exp(row - top).sum(dtype=np.float64)))
        ids = top_ids(row, num_top)
        rank = int((row > row[token]).sum() + (row[:token] == row[token]).sum()) + 1
        likeliest = tuple(float(value) - log_mass for value in row[ids])
        result.append(RawLogprobs(token, float(row[token]) - log_mass, rank, tuple(ids.tolist()), likeliest))
    return result


def top_ids(row: Array, count: int) -> npt.NDArray[np.int64]:
    """Ids of the `count` largest of `[vocab]`, largest first, the lower id first on ties."""
    count = min(count, len(row))
    if count == 0:
        return np.empty(0, np.int64)
    threshold = np.partition(row, len(row) - count)[len(row) - count]
    ids = np.flatnonzero(row >= threshold)
    return ids[np.argsort(-row[ids], kind="stable")][:count]
