"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Any

from ridgeline.engine.sampling_params import SamplingParams
from ridgeline.serve.errors import bad_request, unsupported
from ridgeline.serve.openai.fields import SamplingFields, read_fields

DEFAULT_ONLY: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "add_special_tokens": (True,),
    "prompt_embeds": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
DEFAULT_MAX_TOKENS = 16

Prompt = str | list[int]


class CompletionRequest(SamplingFields):
    """See docs/openai_compatibility.md for every field."""

    prompt: Any
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None

    def params(self) -> SamplingParams:
        """Raises ApiError 400."""
        self.check_stream_options()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise unsupported("best_of", "only best_of equal to n is supported")
        if self.prompt_logprobs is not None and self.stream:
            raise unsupported("prompt_logprobs", "is not available in a streamed answer")
        more: dict[str, Any] = {}
        if self.echo and self.logprobs is not None:
            more["prompt_logprobs"] = max(self.logprobs, self.prompt_logprobs or 0)
        return self.sampling_params(default_max_tokens=DEFAULT_MAX_TOKENS, logprobs=self.logprobs, **more)


def read_completion_request(body: dict[str, Any]) -> CompletionRequest:
    """Raises ApiError 400."""
    return read_fields(CompletionRequest, body, DEFAULT_ONLY)


def prompts_of(prompt: object, max_prompts: int) -> list[Prompt]:
    """Text, texts, token ids or lists of token ids, as a list of prompts. Raises ApiError 400."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise bad_request("prompt", "must be a string, an array of strings, or token ids", "invalid_type")
    if not prompt:
        raise bad_request("prompt", "must not be empty", "invalid_value")
    if _are_ids(prompt):
        return [prompt]
    if len(prompt) > max_prompts:
        raise bad_request("prompt", f"at most {max_prompts} prompts, got {len(prompt)}", "invalid_value")
    if all(isinstance(item, str) for item in prompt) or all(
        isinstance(item, list) and _are_ids(item) for item in prompt
    ):
        return prompt
    raise bad_request("prompt", "must be a string, an array of strings, or token ids", "invalid_type")


def _are_ids(items: list[Any]) -> bool:
    return set(map(type, items)) == {int}
