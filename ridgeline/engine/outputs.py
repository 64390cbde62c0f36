"""What a caller gets back, whole or as a stream of deltas."""

from __future__ import annotations

from dataclasses import dataclass, field

from ridgeline.core.event import FinishReason


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability of one token after every adjustment but before truncation (top-k/p), natural log.

    `rank` is 1 for the likeliest. `text` is the token decoded alone; `raw` its exact bytes, which
    may be part of a character.
    """

    token_id: int
    logprob: float
    rank: int
    text: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The token at a position and the likeliest alternatives there, likeliest first."""

    token: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted for one request (all its completions together)."""

    num_prompt_tokens: int
    num_generated_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class CompletionDelta:
    """A piece of the stream of completion `index`. Joined, the deltas equal the `Completion`.

    `text` never ends in half a character and never holds part of a stop string. A delta may have
    token ids and no text. The last one of a completion has `finish_reason`.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    usage: Usage | None = None
    """Set on the last delta of a completion: usage of that completion alone."""
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
    """Set once, on the first delta of completion 0, if asked for: one entry per prompt token."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One whole completion. `token_ids` includes a final stop token; `text` does not show it."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    logprobs: tuple[PositionLogprobs, ...] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """`prompt_logprobs[0]` is None: the first token has no predecessor."""

    id: str
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    usage: Usage
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = field(default=None)
    prompt: str | None = None
