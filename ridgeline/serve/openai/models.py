"""GET /v1/models, and the tokenizer as a service (vLLM's /tokenize and /detokenize)."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from ridgeline.serve.errors import ApiError, bad_request, from_engine, json_response
from ridgeline.serve.json_body import printable, read_json
from ridgeline.serve.openai.chat import render
from ridgeline.serve.openai.chat_request import ChatRequest, read_chat_request
from ridgeline.serve.openai.fields import validated
from ridgeline.serve.service import Service

INLINE_TOKENS = 4096


async def list_models(service: Service, http: Request) -> Response:
    """Every served name."""
    service.live_engine()
    return json_response({"object": "list", "data": [_card(service, name) for name in service.model_names()]})


async def get_model(service: Service, http: Request) -> Response:
    """One served name, else 404."""
    service.live_engine()
    name = http.path_params["model"]
    if name not in service.model_names():
        raise ApiError(
            404, f"model: {printable(name)} is not served here", param="model", code="model_not_found"
        )
    return json_response(_card(service, name))


def _card(service: Service, name: str) -> dict[str, Any]:
    engine = service.live_engine()
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "ridgeline",
        "root": engine.model_name,
        "parent": None,
        "max_model_len": engine.config.max_model_len,
    }


class TokenizeRequest(BaseModel):
    """`prompt`, or `messages` as in a chat request."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool | None = None
    return_token_strs: bool = False


class DetokenizeRequest(BaseModel):
    """Token ids to turn into text, special tokens included."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    model: str | None = None
    tokens: list[int] = Field(max_length=1_000_000)


async def tokenize(service: Service, http: Request) -> Response:
    """Token ids of a prompt or of a rendered chat."""
    engine = service.live_engine()
    request = validated(TokenizeRequest, await read_json(http, service.options))
    service.check_model(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise bad_request("prompt", "give either prompt or messages", "invalid_value")
    if request.messages is not None:
        chat: ChatRequest = read_chat_request(
            {"messages": request.messages, "add_generation_prompt": request.add_generation_prompt},
            service.options.max_messages,
        )
        text, add_special = await render(engine, chat), bool(request.add_special_tokens)
    else:
        text, add_special = request.prompt or "", request.add_special_tokens is not False
    try:
        ids = await engine.encode(text, add_special_tokens=add_special) if text else ()
    except Exception as error:
        raise from_engine(error) from error
    answer: dict[str, Any] = {
        "count": len(ids),
        "max_model_len": engine.config.max_model_len,
        "tokens": list(ids),
        "token_strs": [engine.tokenizer.token_text(i) for i in ids] if request.return_token_strs else None,
    }
    return json_response(answer)


async def detokenize(service: Service, http: Request) -> Response:
    """Text of token ids."""
    engine = service.live_engine()
    request = validated(DetokenizeRequest, await read_json(http, service.options))
    service.check_model(request.model)
    size = engine.tokenizer.vocab_size
    for i, token in enumerate(request.tokens):
        if not 0 <= token < size:
            raise bad_request(f"tokens[{i}]", f"token ids are between 0 and {size - 1}", "invalid_value")
    if len(request.tokens) > INLINE_TOKENS:
        text = await asyncio.to_thread(engine.tokenizer.decode, request.tokens, skip_special_tokens=False)
    else:
        text = engine.tokenizer.decode(request.tokens, skip_special_tokens=False)
    return json_response({"prompt": text})
