"""POST /v1/completions."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from ridgeline.engine.outputs import CompletionDelta, PositionLogprobs
from ridgeline.serve.errors import bad_request, json_response
from ridgeline.serve.json_body import read_json
from ridgeline.serve.openai.answers import (
    DONE,
    Choice,
    collect,
    error_event,
    follow,
    quoted,
    submit,
    usage_json,
)
from ridgeline.serve.openai.chat import FINGERPRINT
from ridgeline.serve.openai.completion_request import Prompt, prompts_of, read_completion_request
from ridgeline.serve.openai.logprobs import completion_logprobs, prompt_logprobs
from ridgeline.serve.response import EventStream, Reply
from ridgeline.serve.service import Service

if TYPE_CHECKING:
    from ridgeline.engine.async_engine import AsyncEngine, Generation


async def completions(service: Service, http: Request) -> Response:
    """Raises ApiError; everything refusable is refused before the first byte of the answer."""
    engine = service.live_engine()
    body = await read_json(http, service.options)
    request = read_completion_request(body)
    model = service.check_model(request.model)
    prompts = prompts_of(request.prompt, service.options.max_prompts)
    params = request.params()
    if len(prompts) * params.n > service.options.max_sequences:
        limit = service.options.max_sequences
        raise bad_request(
            "n", f"prompts x n is at most {limit}, got {len(prompts)} x {params.n}", "invalid_value"
        )
    answer_id = "cmpl-" + uuid.uuid4().hex
    generations = await submit(engine, prompts, params, request, answer_id, add_special_tokens=True)
    echoes = [Echo(engine, prompt, generation) for prompt, generation in zip(prompts, generations)]
    # echo with logprobs asks the engine for prompt logprobs; only `prompt_logprobs` itself shows them apart
    answer = CompletionAnswer(
        answer_id,
        model,
        n=params.n,
        echoes=echoes if request.echo else None,
        show_prompt_logprobs=request.prompt_logprobs is not None,
        include_usage=request.include_usage,
    )
    if request.stream:
        return EventStream(answer.events(generations), service.options.write_timeout_s)

    async def work() -> Response:
        return json_response(answer.whole(await collect(generations)))

    return Reply(work)


class Echo:
    """A prompt given back in front of its completion."""

    def __init__(self, engine: AsyncEngine, prompt: Prompt, generation: Generation) -> None:
        self._tokenizer = engine.tokenizer
        self._prompt = prompt
        self._ids = generation.prompt_token_ids

    @property
    def text(self) -> str:
        """The prompt as it was given; token ids as text."""
        if isinstance(self._prompt, str):
            return self._prompt
        return self._tokenizer.decode(list(self._ids), skip_special_tokens=False)

    @property
    def first_token_text(self) -> str:
        """Of the token that has no probability because nothing precedes it."""
        return self._tokenizer.token_text(self._ids[0])


class CompletionAnswer:
    """Builds the answer to one request, whole or as events."""

    def __init__(
        self,
        answer_id: str,
        model: str,
        *,
        n: int,
        echoes: Sequence[Echo] | None,
        show_prompt_logprobs: bool,
        include_usage: bool,
    ) -> None:
        self._n = n
        self._echoes = echoes
        self._show_prompt_logprobs = show_prompt_logprobs
        self._include_usage = include_usage
        self._constant: dict[str, Any] = {
            "id": answer_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        self._head = (
            json.dumps(self._constant, ensure_ascii=False, separators=(",", ":"))[:-1] + ',"choices":['
        )
        self._end = '],"usage":null}\n\n' if include_usage else "]}\n\n"
        self._offsets: dict[int, int] = {}

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The JSON of an answer that is not streamed."""
        usages = [(choice.prompt, choice.index, choice.usage) for choice in choices]
        return {
            **self._constant,
            "choices": [self._choice(choice) for choice in choices],
            "usage": usage_json(usages),
        }

    def _choice(self, choice: Choice) -> dict[str, Any]:
        echo = self._echoes[choice.prompt] if self._echoes is not None else None
        logprobs = None
        if choice.logprobs is not None:
            positions: list[PositionLogprobs | None] = list(choice.logprobs)
            if echo is not None and choice.prompt_logprobs is not None:
                positions = [*choice.prompt_logprobs, *positions]
            logprobs = completion_logprobs(positions, 0, echo.first_token_text if echo else "")
        result: dict[str, Any] = {
            "index": choice.prompt * self._n + choice.index,
            "text": (echo.text if echo else "") + choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if self._show_prompt_logprobs and choice.prompt_logprobs is not None:
            result["prompt_logprobs"] = prompt_logprobs(choice.prompt_logprobs)
        return result

    async def events(self, generations: Sequence[Generation]) -> AsyncGenerator[bytes, None]:
        """Text and finish of every completion as they come, then usage where asked, then [DONE]."""
        usages = []
        try:
            async with contextlib.aclosing(follow(generations)) as deltas:
                async for prompt, delta in deltas:
                    if delta.usage is not None:
                        usages.append((prompt, delta.index, delta.usage))
                    event = self.event(prompt, delta, generations[prompt])
                    if event:
                        yield event
        except Exception as error:
            yield error_event(error) + DONE
            return
        if self._include_usage:
            usage = json.dumps(usage_json(usages), separators=(",", ":"))
            yield f'data: {self._head}],"usage":{usage}}}\n\n'.encode() + DONE
        else:
            yield DONE

    def event(self, prompt: int, delta: CompletionDelta, generation: Generation) -> bytes:
        """The chunk of one delta; empty if there is nothing to tell yet."""
        index = prompt * self._n + delta.index
        text = delta.text
        positions: list[PositionLogprobs | None] = list(delta.logprobs or ())
        first_text = ""
        if index not in self._offsets:
            self._offsets[index] = 0
            if self._echoes is not None:
                echo = self._echoes[prompt]
                text = echo.text + text
                first_text = echo.first_token_text
                if delta.logprobs is not None:
                    positions = [*(generation.prompt_logprobs or ()), *positions]
        if not (text or positions or delta.finish_reason):
            return b""
        logprobs = "null"
        if delta.logprobs is not None:
            told = completion_logprobs(positions, self._offsets[index], first_text)
            logprobs = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
            self._offsets[index] += sum(len(p.token.text) if p else len(first_text) for p in positions)
        finish = "null"
        if delta.finish_reason is not None:
            finish = f'{quoted(delta.finish_reason)},"stop_reason":{json.dumps(delta.stop_reason)}'
        return (
            f'data: {self._head}{{"index":{index},"text":{quoted(text)},"logprobs":{logprobs},'
            f'"finish_reason":{finish}}}{self._end}'
        ).encode()
