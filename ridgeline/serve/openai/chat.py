"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from ridgeline import __version__
from ridgeline.engine.outputs import CompletionDelta
from ridgeline.serve.errors import from_engine, json_response, unsupported
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
from ridgeline.serve.openai.chat_request import ChatRequest, read_chat_request, template_messages
from ridgeline.serve.openai.logprobs import chat_logprobs, prompt_logprobs
from ridgeline.serve.response import EventStream, Reply
from ridgeline.serve.service import Service

if TYPE_CHECKING:
    from ridgeline.engine.async_engine import AsyncEngine, Generation

INLINE_CHARS = 8192
"""Longer chats are rendered off the event loop."""
FINGERPRINT = f"ridgeline-{__version__}"


async def chat_completions(service: Service, http: Request) -> Response:
    """Raises ApiError; everything refusable is refused before the first byte of the answer."""
    engine = service.live_engine()
    body = await read_json(http, service.options)
    request = read_chat_request(body, service.options.max_messages)
    model = service.check_model(request.model)
    params = request.params()
    prompt = await render(engine, request)
    answer_id = "chatcmpl-" + uuid.uuid4().hex
    generations = await submit(
        engine, [prompt], params, request, answer_id, add_special_tokens=False, names=request.names()
    )
    if request.stream:
        chunks = ChatChunks(answer_id, model, include_usage=request.include_usage)
        return EventStream(chunks.events(generations), service.options.write_timeout_s)

    async def work() -> Response:
        return json_response(_answer(await collect(generations), answer_id, model))

    return Reply(work)


async def render(engine: AsyncEngine, request: ChatRequest) -> str:
    """The prompt text of a chat. Raises ApiError 400 for what the model's template refuses."""
    template = engine.chat_template
    if template is None:
        raise unsupported("messages", "this model has no chat template; use /v1/completions")
    messages = template_messages(request.messages, template.source)
    add_prompt = request.add_generation_prompt is not False
    try:
        if sum(len(message["content"]) for message in messages) <= INLINE_CHARS:
            return template.render(messages, add_generation_prompt=add_prompt)
        return await asyncio.to_thread(template.render, messages, add_generation_prompt=add_prompt)
    except Exception as error:
        raise from_engine(error) from error


def _answer(choices: Sequence[Choice], answer_id: str, model: str) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "id": answer_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None if choice.logprobs is None else chat_logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
            }
            for choice in choices
        ],
        "usage": usage_json([(choice.prompt, choice.index, choice.usage) for choice in choices]),
    }
    if choices and choices[0].prompt_logprobs is not None:
        answer["prompt_logprobs"] = prompt_logprobs(choices[0].prompt_logprobs)
    return answer


class ChatChunks:
    """The events of one streamed chat. What does not change between chunks is serialised once."""

    def __init__(self, answer_id: str, model: str, *, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._head = (
            f'{{"id":{quoted(answer_id)},"object":"chat.completion.chunk","created":{int(time.time())},'
            f'"model":{quoted(model)},"system_fingerprint":{quoted(FINGERPRINT)},"choices":['
        )
        self._end = '],"usage":null}\n\n' if include_usage else "]}\n\n"
        self._started: set[int] = set()

    async def events(self, generations: Sequence[Generation]) -> AsyncGenerator[bytes, None]:
        """Role, text and finish of every completion, then usage where asked, then [DONE]."""
        usages = []
        try:
            async with contextlib.aclosing(follow(generations)) as deltas:
                async for _, delta in deltas:
                    if delta.usage is not None:
                        usages.append((0, delta.index, delta.usage))
                    event = self.event(delta)
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

    def event(self, delta: CompletionDelta) -> bytes:
        """The chunks of one delta; empty if there is nothing to tell yet."""
        parts = []
        if delta.index not in self._started:
            self._started.add(delta.index)
            parts.append(self._chunk(delta.index, '{"role":"assistant","content":"","refusal":null}'))
        if delta.text or delta.logprobs:
            logprobs = "null"
            if delta.logprobs is not None:
                logprobs = json.dumps(
                    chat_logprobs(delta.logprobs), ensure_ascii=False, separators=(",", ":")
                )
            parts.append(self._chunk(delta.index, f'{{"content":{quoted(delta.text)}}}', logprobs))
        if delta.finish_reason is not None:
            reason = f'{quoted(delta.finish_reason)},"stop_reason":{json.dumps(delta.stop_reason)}'
            parts.append(self._chunk(delta.index, "{}", finish=reason))
        return "".join(parts).encode()

    def _chunk(self, index: int, delta: str, logprobs: str = "null", finish: str = "null") -> str:
        return (
            f'data: {self._head}{{"index":{index},"delta":{delta},"logprobs":{logprobs},'
            f'"finish_reason":{finish}}}{self._end}'
        )
