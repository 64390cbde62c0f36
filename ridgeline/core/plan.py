"""The seam: a `StepPlan` is all the scheduler emits and a `StepResult` all it absorbs.

Plans speak in counts and positions, never in token values, so the plan of step n+1 can be made
before the tokens of step n are known (overlap). Prefill, chunk, decode, verify and resume are
the same `Row`.
"""

from __future__ import annotations

from typing import NamedTuple

from ridgeline.core.request import Request

NO_BLOCK = -1
"""Stands in a block table where a sliding window has already let the block go."""


class Row(NamedTuple):
    """Compute `count` tokens of one request, from position `start`.

    `blocks[g][i]` is the pool block of KV group `g` that holds positions
    `i * block_size .. (i + 1) * block_size - 1`; every table covers `start + count` positions.
    `num_samples` is 0 for a prompt chunk that does not reach the last known token, else 1: the
    executor samples the token that follows position `start + count - 1`.
    """

    request_id: str
    start: int
    count: int  # type: ignore[assignment]
    blocks: tuple[tuple[int, ...], ...]
    num_samples: int


class Admission(NamedTuple):
    """A request that enters (or, after preemption, re-enters) the running set in this plan.

    `generated` are tokens that it had produced before it was preempted; the executor appends
    them to the prompt. Position p holds `(prompt + generated)[p]`.
    """

    request: Request
    generated: tuple[int, ...]


class StepPlan(NamedTuple):
    """One engine step. `released` names requests whose executor state may be dropped first."""

    step: int
    rows: tuple[Row, ...]
    admitted: tuple[Admission, ...]
    released: tuple[str, ...]
    num_tokens: int


class StepResult(NamedTuple):
    """What running a plan gave.

    `tokens[i]` are the tokens sampled for `plan.rows[i]` (empty when `num_samples` is 0).
    `seconds` is the time the executor spent. `logprobs[i]` is an opaque payload for the output
    side. `error` set means that the step failed and none of its rows count. `row_errors[i]` set
    means that row i alone failed (its logits were not finite): its request ends with that error.
    """

    step: int
    tokens: tuple[tuple[int, ...], ...]
    seconds: float
    logprobs: tuple[object, ...] | None = None
    error: str | None = None
    row_errors: tuple[str | None, ...] | None = None
