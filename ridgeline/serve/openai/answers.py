"""What chat and completions share in answering: submit, follow several generations, collect, count."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring as quoted
from typing import TYPE_CHECKING, Any

from ridgeline.engine.outputs import CompletionDelta, PositionLogprobs, Usage
from ridgeline.serve.errors import ApiError, from_engine, renamed, unavailable

if TYPE_CHECKING:
    from ridgeline.engine.async_engine import AsyncEngine, Generation
    from ridgeline.engine.sampling_params import SamplingParams
    from ridgeline.serve.openai.fields import SamplingFields

__all__ = ["Choice", "collect", "follow", "quoted", "submit", "usage_json"]

logger = logging.getLogger("ridgeline.serve")
DONE = b"data: [DONE]\n\n"


async def submit(
    engine: AsyncEngine,
    prompts: Sequence[str | Sequence[int]],
    params: SamplingParams,
    request: SamplingFields,
    answer_id: str,
    *,
    add_special_tokens: bool,
    names: Mapping[str, str] | None = None,
) -> list[Generation]:
    """Enqueue every prompt, or none: when one is refused the others are aborted and ApiError is raised.

    `names` says what the engine's parameters are called in this request, where they differ.
    """
    generations: list[Generation] = []
    try:
        for i, prompt in enumerate(prompts):
            generation = await engine.submit(
                prompt,
                params,
                request_id=answer_id if len(prompts) == 1 else f"{answer_id}-{i}",
                priority=request.priority or 0,
                cache_salt=request.cache_salt or "",
                add_special_tokens=add_special_tokens,
            )
            generations.append(generation)
    except BaseException as error:
        await close_all(generations)
        if not isinstance(error, Exception):
            raise
        answer = renamed(from_engine(error), names or {})
        if answer.status == 500:
            logger.exception("a request failed")
        raise answer from error
    return generations


async def close_all(generations: Sequence[Generation]) -> None:
    """Abort whatever still runs."""
    for generation in generations:
        await generation.aclose()


async def follow(generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, CompletionDelta], None]:
    """(number of the prompt, delta) of all generations as they come; closing aborts what still runs.

    Raises ApiError when a completion ends in an error or was aborted by the server.
    """
    try:
        if len(generations) == 1:
            async for delta in generations[0]:
                _check_finish(delta)
                yield 0, delta
        else:
            async for i, delta in _merged(generations):
                _check_finish(delta)
                yield i, delta
    finally:
        await close_all(generations)


async def _merged(generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, CompletionDelta], None]:
    """A bounded queue, so that a slow reader leaves the deltas to merge in the engine's front."""
    queue: asyncio.Queue[tuple[int, CompletionDelta | BaseException | None]] = asyncio.Queue(
        2 * len(generations)
    )

    async def pump(i: int, generation: Generation) -> None:
        try:
            async for delta in generation:
                await queue.put((i, delta))
            await queue.put((i, None))
        except Exception as error:
            await queue.put((i, error))

    pumps = [asyncio.create_task(pump(i, generation)) for i, generation in enumerate(generations)]
    try:
        left = len(pumps)
        while left:
            i, item = await queue.get()
            if item is None:
                left -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield i, item
    finally:
        for task in pumps:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*pumps, return_exceptions=True)


def _check_finish(delta: CompletionDelta) -> None:
    if delta.finish_reason == "error":
        logger.error("a request ended in an engine error: %s", delta.error)
        raise ApiError(500, "the engine failed while generating", code="engine_error")
    if delta.finish_reason == "abort":
        raise unavailable("the request was aborted by the server", "request_aborted")


@dataclass
class Choice:
    """One finished completion of prompt number `prompt`."""

    prompt: int
    index: int
    texts: list[str] = field(default_factory=list)
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    usage: Usage | None = None
    prompt_logprobs: Sequence[PositionLogprobs | None] | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, delta: CompletionDelta) -> None:
        """Fold one delta in."""
        self.texts.append(delta.text)
        if delta.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs.extend(delta.logprobs)
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason, self.usage = (
                delta.finish_reason,
                delta.stop_reason,
                delta.usage,
            )


async def collect(generations: Sequence[Generation]) -> list[Choice]:
    """All completions, by prompt and index. Raises ApiError if one of them fails."""
    choices: dict[tuple[int, int], Choice] = {}
    async with contextlib.aclosing(follow(generations)) as deltas:
        async for i, delta in deltas:
            key = (i, delta.index)
            if key not in choices:
                choices[key] = Choice(*key)
            choices[key].add(delta)
    for (i, _), choice in choices.items():
        choice.prompt_logprobs = generations[i].prompt_logprobs
    return [choices[key] for key in sorted(choices)]


def usage_json(usages: Sequence[tuple[int, int, Usage | None]]) -> dict[str, Any]:
    """OpenAI's usage from (prompt, index, usage) of every completion; a prompt counts once, whatever n."""
    prompt = cached = generated = 0
    for _, index, usage in usages:
        if usage is None:
            continue
        generated += usage.num_generated_tokens
        if index == 0:
            prompt += usage.num_prompt_tokens
            cached += usage.num_cached_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def error_event(error: Exception) -> bytes:
    """An error in mid-stream, as OpenAI sends it."""
    answer = from_engine(error)
    if answer.status == 500 and answer is not error:
        logger.error("a stream failed", exc_info=error)
    return b"data: " + json.dumps(answer.body, separators=(",", ":")).encode() + b"\n\n"
