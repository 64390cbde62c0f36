"""The request fields that chat and completions share, and the rules for those that are not here.

A field is one of four things: *supported*; *accepted, without effect on the text* (`NO_EFFECT`: labels for
the operator's own books); *default only* (`default_only`: the value that OpenAI documents as the
default passes, because leaving the field out would mean the same); or refused with a 400 that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from ridgeline.engine.errors import InvalidParameter
from ridgeline.engine.sampling_params import SamplingParams
from ridgeline.serve.errors import ApiError, bad_request, from_engine, unsupported
from ridgeline.serve.json_body import printable

NO_EFFECT = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
MAX_LABEL_CHARS = 512

RequestT = TypeVar("RequestT", bound="SamplingFields")


class StreamOptions(BaseModel):
    """`include_obfuscation` pads chunks against traffic analysis; there is none here: only false passes."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SamplingFields(BaseModel):
    """Types are checked here; ranges by `SamplingParams`, the one place that knows them."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: Any = None
    # beyond OpenAI, named as vLLM names them
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None

    @field_validator("stop")
    @classmethod
    def _stop_is_text(cls, value: object) -> tuple[str, ...]:
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ValueError("must be a string or an array of strings")

    @field_validator("priority")
    @classmethod
    def _priority_is_small(cls, value: int | None) -> int | None:
        if value is not None and not -(2**31) <= value < 2**31:
            raise ValueError("must be a 32-bit integer")
        return value

    @field_validator("cache_salt")
    @classmethod
    def _salt_is_short(cls, value: str | None) -> str | None:
        if value is not None and not 1 <= len(value) <= 256:
            raise ValueError("must have 1 to 256 characters")
        return value

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_stream_options(self) -> None:
        """`stream_options` means something only with `stream`."""
        if self.stream_options is None:
            return
        if not self.stream:
            raise bad_request("stream_options", "is only allowed when stream is true", "invalid_value")
        if self.stream_options.include_obfuscation:
            raise unsupported("stream_options.include_obfuscation")

    def sampling_params(
        self, *, default_max_tokens: int | None, logprobs: int | None, **more: Any
    ) -> SamplingParams:
        """The engine's parameters; null and absent fields take the defaults. Raises ApiError 400."""
        given = {name: getattr(self, name) for name in _SAME_NAME if getattr(self, name) is not None}
        if self.include_stop_str_in_output is not None:
            given["include_stop"] = self.include_stop_str_in_output
        given["max_tokens"] = self.max_tokens if self.max_tokens is not None else default_max_tokens
        given["logit_bias"] = _token_ids(self.logit_bias or {})
        try:
            return SamplingParams(stop=self.stop or (), logprobs=logprobs, **{**given, **more})
        except InvalidParameter as error:
            raise from_engine(error) from error


_SAME_NAME = (
    "n",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "prompt_logprobs",
    "skip_special_tokens",
)


def read_fields(
    kind: type[RequestT], body: dict[str, Any], default_only: Mapping[str, tuple[Any, ...]]
) -> RequestT:
    """A request of `kind` from a JSON object. Raises ApiError 400 naming the first field at fault."""
    fields = {}
    for name, value in body.items():
        if name in NO_EFFECT:
            _check_label(name, value)
        elif name in default_only:
            if value is not None and not any(_same(value, default) for default in default_only[name]):
                raise unsupported(name)
        else:
            fields[name] = value
    return validated(kind, fields)


ModelT = TypeVar("ModelT", bound=BaseModel)


def validated(kind: type[ModelT], fields: Mapping[str, Any]) -> ModelT:
    """A pydantic model, or an ApiError 400 for its first error."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _explain(error) from error


def _explain(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = printable(_place(first["loc"]))
    if first["type"] == "extra_forbidden":
        return bad_request(param, "is not a parameter of this endpoint", "unknown_parameter")
    if first["type"] == "missing":
        return bad_request(param, "is required", "missing_required_parameter")
    message = re.sub(
        r"^(Input|List|String|Dictionary) should ", "must ", first["msg"].removeprefix("Value error, ")
    )
    message = message.replace(" after validation, not ", ", got ")
    return bad_request(param, message, "invalid_type" if "type" in first["type"] else "invalid_value")


def _place(loc: tuple[int | str, ...]) -> str:
    """messages[0].content, as OpenAI writes places."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).lstrip(".")


def _same(value: object, default: object) -> bool:
    """Equality that keeps false and 0 apart."""
    return type(value) is type(default) and value == default


def _check_label(name: str, value: object) -> None:
    if value is None:
        return
    if name == "metadata":
        if not isinstance(value, dict) or len(value) > 16:
            raise bad_request(name, "must be an object of at most 16 strings", "invalid_value")
        for key, text in value.items():
            if len(key) > 64 or not isinstance(text, str) or len(text) > MAX_LABEL_CHARS:
                raise bad_request(
                    name, f"keys up to 64 and strings up to {MAX_LABEL_CHARS} characters", "invalid_value"
                )
    elif not isinstance(value, str) or len(value) > MAX_LABEL_CHARS:
        raise bad_request(name, f"must be a string of at most {MAX_LABEL_CHARS} characters", "invalid_value")


def _token_ids(bias: Mapping[str, float]) -> dict[int, float]:
    result: dict[int, float] = {}
    for key, value in bias.items():
        if not key.isascii() or not key.isdigit() or len(key) > 10:
            raise bad_request("logit_bias", "keys must be token ids", "invalid_value")
        if int(key) in result:
            raise bad_request("logit_bias", f"token {int(key)} appears twice", "invalid_value")
        result[int(key)] = value
    return result
