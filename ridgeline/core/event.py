"""Events are the only log: metrics, traces, the monitor and the web page fold over them."""

from __future__ import annotations

from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "abort", "error"]
"""`stop`: a stop token or stop string. `length`: max_tokens or the context limit."""


class Arrived(NamedTuple):
    """A request was accepted and waits."""

    time_s: float
    request_id: str
    num_prompt_tokens: int


class Admitted(NamedTuple):
    """First time in a running set, or again after preemption (`resumed`)."""

    time_s: float
    request_id: str
    num_cached_tokens: int
    resumed: bool


class Preempted(NamedTuple):
    """It gave up its blocks and waits again; `num_computed_tokens` positions are computed anew."""

    time_s: float
    request_id: str
    num_computed_tokens: int


class TokensGenerated(NamedTuple):
    """`logprobs` is the executor's opaque payload for this row; `first` marks the first of a request."""

    time_s: float
    request_id: str
    tokens: tuple[int, ...]
    first: bool
    logprobs: object = None


class PromptComputed(NamedTuple):
    """A prompt chunk ran (`logprobs` carries prompt logprobs of the chunk when they were asked for)."""

    time_s: float
    request_id: str
    start: int
    count: int  # type: ignore[assignment]
    logprobs: object = None


class Finished(NamedTuple):
    """The one terminal event of every request."""

    time_s: float
    request_id: str
    reason: FinishReason
    num_prompt_tokens: int
    num_generated_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    stop_token_id: int | None = None
    error: str | None = None


class StepCompleted(NamedTuple):
    """One per applied plan, last in its list: the gauges of the moment after it."""

    time_s: float
    step: int
    seconds: float
    num_rows: int
    num_tokens: int
    num_prefill_tokens: int
    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_cached_blocks: int
    num_blocks: int
    error: str | None = None


Event = Arrived | Admitted | Preempted | TokensGenerated | PromptComputed | Finished | StepCompleted
