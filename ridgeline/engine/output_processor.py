"""Folds the engine's events into what callers see: text, logprobs, usage, reasons.

    events --> OutputProcessor.process --> (job id, CompletionDelta)...  and the ids whose stop string matched

The processor never talks to the scheduler: whoever drives it aborts the matched ids with reason
"stop" and feeds the events of that back in; the completion's last delta comes out of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ridgeline.core.event import Event, Finished, PromptComputed, TokensGenerated
from ridgeline.engine.detokenizing import Detokenizer
from ridgeline.engine.intake import Job
from ridgeline.engine.logprobs import RawLogprobs, RowLogprobs, position_logprobs, positions_logprobs
from ridgeline.engine.outputs import Completion, CompletionDelta, PositionLogprobs, RequestOutput, Usage

if TYPE_CHECKING:
    from ridgeline.engine.tokenizing import Tokenizer


class Output(NamedTuple):
    """A delta and whose it is."""

    job_id: str
    delta: CompletionDelta


class OutputProcessor:
    """State of every live completion on its way from tokens to text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._completions: dict[str, _OpenCompletion] = {}

    def add(self, job: Job) -> None:
        """Expect events of the job's requests."""
        for index, request in enumerate(job.requests):
            self._completions[request.id] = _OpenCompletion(job, index, self._tokenizer)

    def process(self, events: Sequence[Event]) -> tuple[list[Output], list[str]]:
        """At most one delta per completion, and the request ids whose stop string has just matched."""
        stop_tokens = {
            event.request_id: event.stop_token_id
            for event in events
            if type(event) is Finished and event.stop_token_id is not None
        }
        touched: dict[str, _OpenCompletion] = {}
        for event in events:
            if not isinstance(event, (TokensGenerated, PromptComputed, Finished)):
                continue
            completion = self._completions.get(event.request_id)
            if completion is None:
                continue
            if type(event) is TokensGenerated:
                completion.take(event, stop_tokens.get(event.request_id))
            elif type(event) is PromptComputed:
                completion.take_prompt(event.logprobs)
                continue
            elif type(event) is Finished:
                completion.finish(event)
                del self._completions[event.request_id]
            touched[event.request_id] = completion
        outputs = [Output(entry.job_id, entry.delta()) for entry in touched.values()]
        matched = [key for key, entry in touched.items() if entry.stop_matched and key in self._completions]
        return outputs, matched

    def fail(self, message: str) -> list[Output]:
        """End everything live with an error: nothing more will come from the engine."""
        outputs = []
        for completion in self._completions.values():
            completion.break_off(message)
            outputs.append(Output(completion.job_id, completion.delta()))
        self._completions.clear()
        return outputs


class _OpenCompletion:
    """One completion under way; collects what the next delta will carry."""

    def __init__(self, job: Job, index: int, tokenizer: Tokenizer) -> None:
        params = job.params
        self.job_id = job.id
        self._index = index
        self._params = params
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(
            tokenizer.token_bytes_of(params.skip_special_tokens),
            params.stop,
            include_stop=params.include_stop,
            min_tokens=params.min_tokens,
        )
        self._num_prompt = len(job.prompt_token_ids)
        self._num_tokens = 0
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[PositionLogprobs] = []
        self._prompt: dict[int, RawLogprobs] | None = None
        if index == 0 and params.prompt_logprobs is not None:
            self._prompt = {}
        self._finished: Finished | None = None
        self._error: str | None = None

    @property
    def stop_matched(self) -> bool:
        return self._detokenizer.matched_stop is not None

    def take_prompt(self, payload: object) -> None:
        """Keep prompt logprobs by position (a recomputed chunk brings them again)."""
        if self._prompt is not None and isinstance(payload, RowLogprobs):
            self._prompt.update(enumerate(payload.prompt, payload.prompt_start))

    def take(self, event: TokensGenerated, stop_token: int | None) -> None:
        """Tokens of a step. A final stop token is no text, unless stops are to be included."""
        if self.stop_matched:
            return
        self.take_prompt(event.logprobs)
        tokens = event.tokens
        hidden = stop_token is not None and tokens[-1] == stop_token and not self._params.include_stop
        before = self._detokenizer.num_tokens
        self._text.append(self._detokenizer.feed(tokens[:-1] if hidden else tokens))
        if self.stop_matched:
            tokens = tokens[: self._detokenizer.num_tokens - before]
        self._tokens.extend(tokens)
        self._num_tokens += len(tokens)
        if self._params.logprobs is not None and isinstance(event.logprobs, RowLogprobs):
            raws = event.logprobs.sampled[: len(tokens)]
            self._logprobs.extend(positions_logprobs(raws, self._tokenizer))

    def finish(self, event: Finished) -> None:
        """Nothing more will come: what was held back is text after all."""
        self._finished = event
        self._text.append(self._detokenizer.flush())

    def break_off(self, message: str) -> None:
        """Finish without the scheduler's word."""
        self._error = message
        self._text.append(self._detokenizer.flush())

    def delta(self) -> CompletionDelta:
        """What has been collected since the last call."""
        text, tokens, logprobs = "".join(self._text), tuple(self._tokens), tuple(self._logprobs)
        self._text, self._tokens, self._logprobs = [], [], []
        delta = CompletionDelta(
            self._index,
            text,
            tokens,
            logprobs if self._params.logprobs is not None else None,
            prompt_logprobs=self._prompt_logprobs(),
        )
        if self._error is not None:
            return _ended(delta, "error", None, self._error, self._usage(0))
        if self._finished is None:
            return delta
        return self._last(delta, self._finished)

    def _last(self, delta: CompletionDelta, event: Finished) -> CompletionDelta:
        usage = self._usage(event.num_cached_tokens)
        stop = self._detokenizer.matched_stop
        if stop is not None and event.reason != "error":
            return _ended(delta, "stop", stop, None, usage)
        asked = event.stop_token_id in self._params.stop_token_ids
        return _ended(delta, event.reason, event.stop_token_id if asked else None, event.error, usage)

    def _usage(self, num_cached: int) -> Usage:
        return Usage(self._num_prompt, self._num_tokens, num_cached)

    def _prompt_logprobs(self) -> tuple[PositionLogprobs | None, ...] | None:
        """Once, as soon as every position is there (with the first token)."""
        found = self._prompt
        if found is None or len(found) < self._num_prompt - 1:
            return None
        self._prompt = None
        positions = (position_logprobs(found[i], self._tokenizer) for i in range(1, self._num_prompt))
        return (None, *positions)


def _ended(
    delta: CompletionDelta, reason: str, stop_reason: str | int | None, error: str | None, usage: Usage
) -> CompletionDelta:
    return CompletionDelta(
        delta.index,
        delta.text,
        delta.token_ids,
        delta.logprobs,
        reason,  # type: ignore[arg-type]
        stop_reason,
        error,
        usage,
        delta.prompt_logprobs,
    )


def join_deltas(deltas: Sequence[CompletionDelta]) -> CompletionDelta:
    """One delta that says what these, of one completion and in order, said."""
    if len(deltas) == 1:
        return deltas[0]
    last = deltas[-1]
    return CompletionDelta(
        last.index,
        "".join(delta.text for delta in deltas),
        tuple(token for delta in deltas for token in delta.token_ids),
        _chained(deltas),
        last.finish_reason,
        last.stop_reason,
        last.error,
        last.usage,
        next((delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None), None),
    )


def _chained(deltas: Sequence[CompletionDelta]) -> tuple[PositionLogprobs, ...] | None:
    if all(delta.logprobs is None for delta in deltas):
        return None
    return tuple(position for delta in deltas for position in delta.logprobs or ())


class OutputBuilder:
    """Collects a job's deltas into its `RequestOutput`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._deltas: list[list[CompletionDelta]] = [[] for _ in job.requests]

    def add(self, delta: CompletionDelta) -> None:
        """The next delta of its completion."""
        self._deltas[delta.index].append(delta)

    def build(self) -> RequestOutput:
        """The whole; valid once every completion has had its last delta."""
        wholes = [join_deltas(deltas) for deltas in self._deltas]
        usages = [whole.usage for whole in wholes if whole.usage is not None]
        usage = Usage(
            len(self._job.prompt_token_ids),
            sum(usage.num_generated_tokens for usage in usages),
            max((usage.num_cached_tokens for usage in usages), default=0),
        )
        return RequestOutput(
            self._job.id,
            self._job.prompt_token_ids,
            tuple(map(_completion, wholes)),
            usage,
            wholes[0].prompt_logprobs,
            self._job.prompt,
        )


def _completion(whole: CompletionDelta) -> Completion:
    assert whole.finish_reason is not None
    return Completion(
        whole.index,
        whole.text,
        whole.token_ids,
        whole.finish_reason,
        whole.stop_reason,
        whole.logprobs,
        whole.error,
    )
