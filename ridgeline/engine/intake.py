"""A prompt and sampling parameters, checked against model and context, become core requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ridgeline.core.request import Request
from ridgeline.engine.errors import ContextLengthExceeded, InvalidParameter
from ridgeline.engine.sampling_params import MAX_SEED, SamplingParams

if TYPE_CHECKING:
    from ridgeline.engine.tokenizing import Tokenizer

MAX_TOTAL_TOKENS = 1 << 20
"""Most tokens that all completions of one request may generate together (n x max_tokens)."""

MAX_SALT_CHARS = 1024
MAX_REQUEST_ID_CHARS = 256
_PRIORITY_LIMIT = 1 << 31


@dataclass(frozen=True, slots=True)
class Job:
    """One request of a caller: n core requests, one per completion, that share prompt and parameters.

    `requests[i].id` is the job's id, or "id-i" when there are several; `requests[i].sampling` are
    the parameters of completion i, seed settled.
    """

    id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    requests: tuple[Request, ...]
    prompt: str | None = None


class Intake:
    """Makes jobs. Holds nothing that changes but the source of seeds.

    Args:
        tokenizer: the model's.
        vocab_size: rows of the embedding: prompt ids are below it.
        eos_token_ids: tokens that end every completion unless ignore_eos (those without logits never can).
        context_limit: most tokens of one completion, prompt included.
        draw_seed: called for a request that brings no seed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        context_limit: int,
        draw_seed: Callable[[], int],
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.eos_token_ids = frozenset(token for token in eos_token_ids if token < vocab_size)
        self.context_limit = context_limit
        self._draw_seed = draw_seed

    def encode(self, prompt: str | Sequence[int], add_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of a prompt that leaves room for at least one token.

        Raises InvalidParameter("prompt", ...) for what is no prompt, ContextLengthExceeded for one
        that is too long; a text that cannot fit is refused before it is tokenized.
        """
        if isinstance(prompt, str):
            self._check_length_of(prompt)
            try:
                token_ids = tuple(self.tokenizer.encode(prompt, add_special_tokens))
            except UnicodeEncodeError as error:
                message = f"is not Unicode text: lone surrogate at {error.start}"
                raise InvalidParameter("prompt", message) from None
        else:
            token_ids = self._checked_ids(prompt)
        if not token_ids:
            raise InvalidParameter("prompt", "must have at least one token")
        if len(token_ids) >= self.context_limit:
            self._refuse_length(len(token_ids), exact=True)
        if max(token_ids) >= self.vocab_size:
            limit = f"token id {max(token_ids)} is outside the vocabulary of {self.vocab_size}"
            raise InvalidParameter("prompt", limit)
        return token_ids

    def job(
        self,
        job_id: str,
        prompt_token_ids: tuple[int, ...],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str = "",
        prompt: str | None = None,
    ) -> Job:
        """The core requests of one call.

        Raises InvalidParameter and ContextLengthExceeded naming the parameter and the limit.
        """
        _check_identity(job_id, priority, cache_salt)
        self._check_vocabulary(params)
        max_tokens = self._max_tokens(len(prompt_token_ids), params)
        seed = self._draw_seed() if params.seed is None else params.seed
        requests = tuple(
            Request(
                id=job_id if params.n == 1 else f"{job_id}-{index}",
                prompt=prompt_token_ids,
                max_tokens=max_tokens,
                stop_token_ids=self._stop_token_ids(params),
                min_tokens=params.min_tokens,
                priority=priority,
                cache_salt=cache_salt.encode("utf-8"),
                skip_prefix_cache=params.prompt_logprobs is not None and index == 0,
                sampling=dataclasses.replace(
                    params,
                    n=1,
                    max_tokens=max_tokens,
                    seed=_wrap(seed + index),
                    prompt_logprobs=params.prompt_logprobs if index == 0 else None,
                ),
            )
            for index in range(params.n)
        )
        return Job(job_id, prompt_token_ids, params, requests, prompt)

    def _check_length_of(self, text: str) -> None:
        """Refuse a text whose bytes, at the longest token's length each, are too many tokens already."""
        if len(text) <= 16 * self.context_limit:
            return
        at_least = len(text) // self.tokenizer.longest_token_bytes
        if at_least >= self.context_limit:
            self._refuse_length(at_least, exact=False)

    def _refuse_length(self, num_tokens: int, *, exact: bool) -> None:
        count = f"{num_tokens}" if exact else f"at least {num_tokens}"
        raise ContextLengthExceeded(
            "prompt",
            f"has {count} tokens, but this model's context is {self.context_limit} tokens "
            f"and at least one must be left to generate",
            num_tokens=num_tokens,
            limit_tokens=self.context_limit,
        )

    def _checked_ids(self, prompt: Sequence[int]) -> tuple[int, ...]:
        if not isinstance(prompt, (list, tuple)) or not all(type(token) is int for token in prompt):
            raise InvalidParameter("prompt", "must be text or a list of token ids")
        if prompt and min(prompt) < 0:
            limit = f"token id {min(prompt)} is outside the vocabulary of {self.vocab_size}"
            raise InvalidParameter("prompt", limit)
        return tuple(prompt)

    def _check_vocabulary(self, params: SamplingParams) -> None:
        for name, tokens in (("stop_token_ids", params.stop_token_ids), ("logit_bias", params.logit_bias)):
            for token in tokens:
                if token >= self.vocab_size:
                    limit = f"token id {token} is outside the vocabulary of {self.vocab_size}"
                    raise InvalidParameter(name, limit)

    def _max_tokens(self, num_prompt: int, params: SamplingParams) -> int:
        room = self.context_limit - num_prompt
        asked = room if params.max_tokens is None else params.max_tokens
        if asked > room:
            raise ContextLengthExceeded(
                "max_tokens",
                f"the prompt has {num_prompt} tokens and max_tokens is {asked}, {num_prompt + asked} in all, "
                f"but this model's context is {self.context_limit} tokens",
                num_tokens=num_prompt + asked,
                limit_tokens=self.context_limit,
            )
        if params.min_tokens > asked:
            raise InvalidParameter("min_tokens", f"must not exceed the {asked} tokens that fit the context")
        if params.n * asked > MAX_TOTAL_TOKENS:
            message = f"n x max_tokens is {params.n} x {asked}, at most {MAX_TOTAL_TOKENS} are allowed"
            raise InvalidParameter("n", message)
        return asked

    def _stop_token_ids(self, params: SamplingParams) -> frozenset[int]:
        own = frozenset(params.stop_token_ids)
        return own if params.ignore_eos else own | self.eos_token_ids


def _check_identity(job_id: str, priority: int, cache_salt: str) -> None:
    if not isinstance(job_id, str) or not 0 < len(job_id) <= MAX_REQUEST_ID_CHARS:
        raise InvalidParameter("request_id", f"must be text of 1 to {MAX_REQUEST_ID_CHARS} characters")
    if type(priority) is not int or not -_PRIORITY_LIMIT <= priority < _PRIORITY_LIMIT:
        raise InvalidParameter("priority", f"must be an integer within +-{_PRIORITY_LIMIT}")
    if not isinstance(cache_salt, str) or len(cache_salt) > MAX_SALT_CHARS:
        raise InvalidParameter("cache_salt", f"must be text of at most {MAX_SALT_CHARS} characters")
    try:
        cache_salt.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidParameter("cache_salt", "is not Unicode text") from None


def _wrap(seed: int) -> int:
    """Into the range of a signed 64-bit integer."""
    return (seed + MAX_SEED + 1) % (1 << 64) - MAX_SEED - 1
