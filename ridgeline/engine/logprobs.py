"""The logprob payload between executor and output side: `StepResult.logprobs[i]`, opaque to the scheduler.

An executor puts a `RowLogprobs` (or None) for each row of the plan; the scheduler hands it on in
`TokensGenerated.logprobs` and `PromptComputed.logprobs`; the output side picks the part it needs and
adds text and bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ridgeline.engine.outputs import PositionLogprobs, TokenLogprob

if TYPE_CHECKING:
    from ridgeline.engine.tokenizing import Tokenizer


class RawLogprobs(NamedTuple):
    """One position: the token there and the likeliest `k` (natural log, likeliest first).

    `rank` is the token's own rank, 1 for the likeliest, the lower id first on ties. `top_ids[i]` has
    rank i + 1; the token itself may or may not be among them. Plain Python numbers, not numpy scalars.
    """

    token_id: int
    logprob: float
    rank: int
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


class RowLogprobs(NamedTuple):
    """What one plan row gave.

    `sampled[j]` belongs to `StepResult.tokens[i][j]`; empty when logprobs were not asked for.
    `prompt[j]` is the logprob of the *prompt token at position* `prompt_start + j` given the ones
    before it (a row that computes positions start .. start+count-1 yields positions start+1 ..
    min(start+count, num_prompt_tokens-1)); empty when prompt logprobs were not asked for.
    """

    sampled: tuple[RawLogprobs, ...] = ()
    prompt_start: int = 0
    prompt: tuple[RawLogprobs, ...] = ()


def position_logprobs(raw: RawLogprobs, tokenizer: Tokenizer) -> PositionLogprobs:
    """Add text and exact bytes to each token of a position."""
    top = tuple(
        _token(token_id, logprob, rank, tokenizer)
        for rank, (token_id, logprob) in enumerate(zip(raw.top_ids, raw.top_logprobs, strict=True), 1)
    )
    return PositionLogprobs(_token(raw.token_id, raw.logprob, raw.rank, tokenizer), top)


def positions_logprobs(raws: Sequence[RawLogprobs], tokenizer: Tokenizer) -> tuple[PositionLogprobs, ...]:
    """`position_logprobs` over a run of positions."""
    return tuple(position_logprobs(raw, tokenizer) for raw in raws)


def _token(token_id: int, logprob: float, rank: int, tokenizer: Tokenizer) -> TokenLogprob:
    return TokenLogprob(
        token_id, logprob, rank, tokenizer.token_text(token_id), tokenizer.token_bytes(token_id)
    )
