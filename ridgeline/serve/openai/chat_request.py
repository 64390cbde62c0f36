"""The body of POST /v1/chat/completions."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ridgeline.engine.sampling_params import SamplingParams
from ridgeline.serve.errors import ApiError, bad_request, renamed, unsupported
from ridgeline.serve.openai.fields import SamplingFields, read_fields, validated

DEFAULT_ONLY: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True,),
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
    # vLLM's
    "add_special_tokens": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "echo": (False,),
    "best_of": (),
}
"""Field -> the values that mean the same as leaving it out. null always does."""

_USES_NAMES = re.compile(r"""\.name\b|\[\s*['"]name['"]\s*\]|get\(\s*['"]name['"]""")


class TextPart(BaseModel):
    """The one kind of content part that a text model has."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn. `developer` is OpenAI's newer word for `system`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | None = None
    name: str | None = Field(default=None, max_length=64)


class ChatRequest(SamplingFields):
    """See docs/openai_compatibility.md for every field."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None

    def params(self) -> SamplingParams:
        """Raises ApiError 400."""
        self.check_stream_options()
        if self.top_logprobs is not None and not self.logprobs:
            raise bad_request("top_logprobs", "is only allowed when logprobs is true", "invalid_value")
        if self.prompt_logprobs is not None and self.stream:
            raise unsupported("prompt_logprobs", "is not available in a streamed answer")
        more: dict[str, Any] = {}
        if self.max_completion_tokens is not None:
            if self.max_tokens is not None and self.max_tokens != self.max_completion_tokens:
                raise bad_request(
                    "max_tokens", "contradicts max_completion_tokens; give one", "invalid_value"
                )
            more["max_tokens"] = self.max_completion_tokens
        top = (self.top_logprobs or 0) if self.logprobs else None
        try:
            return self.sampling_params(default_max_tokens=None, logprobs=top, **more)
        except ApiError as error:
            raise renamed(error, self.names()) from error

    def names(self) -> dict[str, str]:
        """What the engine's parameters are called in this request, where they differ."""
        if self.max_completion_tokens is None:
            return {"prompt": "messages"}
        return {"prompt": "messages", "max_tokens": "max_completion_tokens"}


def read_chat_request(body: dict[str, Any], max_messages: int) -> ChatRequest:
    """Raises ApiError 400."""
    body = {**body, "messages": _messages(body.get("messages"), max_messages)} if "messages" in body else body
    return read_fields(ChatRequest, body, DEFAULT_ONLY)


def template_messages(messages: list[Message], template_source: str) -> list[dict[str, str]]:
    """Messages as chat templates read them. A name that the template would drop is refused."""
    names_matter = bool(_USES_NAMES.search(template_source))
    knows_developer = "developer" in template_source
    result = []
    for i, message in enumerate(messages):
        role = "system" if message.role == "developer" and not knows_developer else message.role
        turn = {"role": role, "content": message.content or ""}
        if message.name is not None:
            if not names_matter:
                raise unsupported(f"messages[{i}].name", "the model's chat template has no place for names")
            turn["name"] = message.name
        result.append(turn)
    return result


def _messages(raw: Any, max_messages: int) -> Any:
    """Content parts joined to text, so that the model below sees plain strings."""
    if not isinstance(raw, list):
        return raw
    if len(raw) > max_messages:
        raise bad_request("messages", f"at most {max_messages} messages, got {len(raw)}", "invalid_value")
    return [_message(f"messages[{i}]", message) for i, message in enumerate(raw)]


def _message(at: str, raw: Any) -> Any:
    if not isinstance(raw, dict):
        return raw
    if raw.get("role") in ("tool", "function"):
        raise unsupported(f"{at}.role", f"{raw['role']} messages are not supported by this server")
    message = dict(raw)
    for name, nothing in (("tool_calls", []), ("function_call", None), ("audio", None), ("refusal", None)):
        if name in message and message.pop(name) not in (None, nothing):
            raise unsupported(f"{at}.{name}")
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = _text_of_parts(f"{at}.content", content)
    elif content is None:
        raise bad_request(f"{at}.content", "is required: a string or an array of text parts")
    elif not isinstance(content, str):
        raise bad_request(f"{at}.content", "must be a string or an array of text parts", "invalid_type")
    return message


def _text_of_parts(at: str, parts: list[Any]) -> str:
    if not parts:
        raise bad_request(at, "must have at least one part", "invalid_value")
    texts = []
    for i, part in enumerate(parts):
        if isinstance(part, dict) and part.get("type", "text") != "text":
            raise unsupported(f"{at}[{i}].type", "unsupported content part: this server reads text only")
        try:
            texts.append(validated(TextPart, part).text)
        except ApiError as error:
            raise bad_request(f"{at}[{i}]", "must be an object with type and text", "invalid_type") from error
    return "\n".join(texts)
