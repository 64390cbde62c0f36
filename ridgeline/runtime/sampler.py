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

HEAD_DEPTH = np.float32(8.0)
"""Tokens within this of the largest scaled logit are sorted at first: nearly always all that matters."""
NO_LIMIT = np.iinfo(np.int64).max
MIN_TEMPERATURE = 1e-5
"""A smaller one counts as this: nothing but the likeliest token is left anyway."""
MAX_HEAD = 2048
"""With more tokens than this in its head, a row is sorted whole, by itself."""


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
    scaled = (logits - logits.max(axis=1, keepdims=True)) / limits.temperature[:, None]
    mass = np.exp(scaled).sum(axis=1).astype(np.float64)
    tokens = np.full(len(rows), -1, np.int32)
    in_head = scaled > -HEAD_DEPTH
    small = np.flatnonzero(in_head.sum(axis=1) <= MAX_HEAD)
    if len(small):
        head, ids, sizes = sorted_heads(scaled[small], in_head[small])
        index = pick(head, sizes, logits.shape[1], mass[small], limits.at(small))
        found = np.flatnonzero(index >= 0)
        tokens[small[found]] = ids[found, index[found]]
    for i in np.flatnonzero(tokens < 0):  # the head did not decide, or was too large: sort the whole row
        order = np.argsort(-scaled[i], kind="stable")
        one = slice(i, i + 1)
        size = np.array([len(order)])
        index = pick(scaled[i][order][None], size, len(order), mass[one], limits.at(one))
        tokens[i] = order[index[0]]
    return tokens


def sorted_heads(
    scaled: Array, in_head: npt.NDArray[np.bool_]
) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each row's values where `in_head`, in descending order, ties by id: (values, ids, sizes).

    `[m, vocab]` -> `[m, width]`, `[m, width]`, `[m]`; values beyond a row's size are -inf.
    """
    sizes = in_head.sum(axis=1)
    row_of, ids = np.nonzero(in_head)
    values = scaled[row_of, ids]
    order = np.lexsort((ids, -values, row_of))
    column = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    head = np.full((len(scaled), sizes.max()), -np.inf, np.float32)
    head_ids = np.zeros(head.shape, np.int64)
    head[row_of, column] = values[order]
    head_ids[row_of, column] = ids[order]
    return head, head_ids, sizes


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
        rank = int((row > row[token]).sum()) + 1
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
