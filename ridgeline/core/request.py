"""What a caller asks for: a `Request` is frozen; everything that changes lives in the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Request:
    """One generation request, in tokens.

    Attributes:
        id: unique among live requests.
        prompt: token ids, `[num_prompt_tokens]`, at least one.
        max_tokens: largest number of tokens to generate, at least one.
        stop_token_ids: generation finishes when one of these is sampled (it is part of the output).
        min_tokens: stop tokens do not count before this many generated tokens (the sampler masks them).
        priority: smaller is more urgent; only the priority policy reads it.
        cache_salt: prefixes are shared only among requests with equal salt.
        skip_prefix_cache: compute every prompt position (prompt logprobs need all logits).
        sampling: opaque to the scheduler; handed to the executor with the admission.
    """

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    priority: int = 0
    cache_salt: bytes = b""
    skip_prefix_cache: bool = False
    sampling: object = field(default=None, compare=False)
