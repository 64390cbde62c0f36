"""What a caller may ask of sampling. Every field is checked; nothing is ignored in silence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ridgeline.engine.errors import InvalidParameter as InvalidParameter

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1024
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling options of one request.

    Attributes:
        max_tokens: tokens to generate; None means up to the context limit.
        temperature: 0 is greedy (argmax, lowest id on ties).
        top_p: nucleus: the smallest set of tokens whose probability reaches this.
        top_k: only the k likeliest tokens; 0 switches it off.
        min_p: drop tokens less likely than min_p times the likeliest.
        repetition_penalty: >1 discourages tokens of prompt and output (CTRL, Keskar et al. 2019).
        presence_penalty, frequency_penalty: OpenAI's, over generated tokens only.
        seed: the same seed gives the same text whatever else is in the batch; None draws one.
        n: number of completions.
        stop: strings at which the text ends; they are not part of it unless include_stop.
        stop_token_ids: tokens at which generation ends.
        min_tokens: no stop token is sampled, and no stop string counts, before this many tokens.
        ignore_eos: the model's end-of-sequence tokens do not stop.
        logit_bias: token id -> number in [-100, 100] added to its logit.
        logprobs: None: none. k: log probabilities of the sampled token and the k likeliest (k may be 0).
        prompt_logprobs: the same for the prompt's tokens.
        skip_special_tokens: leave special tokens out of the text.
    """

    max_tokens: int | None = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0, above=True)
        _integer("top_k", self.top_k, 0, 2**31 - 1)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above=True)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None:
            _integer("seed", self.seed, -MAX_SEED - 1, MAX_SEED)
        _integer("n", self.n, 1, MAX_N)
        _stops(self.stop)
        _count("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0, 2**31 - 1)
        _integer("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidParameter("min_tokens", f"must not exceed max_tokens ({self.max_tokens})")
        _count("logit_bias", self.logit_bias, MAX_LOGIT_BIAS)
        for token, bias in self.logit_bias.items():
            _integer("logit_bias", token, 0, 2**31 - 1)
            _number("logit_bias", bias, -100.0, 100.0)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), 0, MAX_LOGPROBS)


def _integer(param: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidParameter(param, f"must be an integer, got {type(value).__name__}")
    if not low <= value <= high:
        raise InvalidParameter(param, f"must be between {low} and {high}, got {value}")


def _number(param: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidParameter(param, f"must be a number, got {type(value).__name__}")
    bracket = "(" if above else "["
    if not math.isfinite(value) or not low <= value <= high or (above and value == low):
        raise InvalidParameter(param, f"must be in {bracket}{low}, {high}], got {value}")


def _count(param: str, values: object, limit: int) -> None:
    if len(values) > limit:  # type: ignore[arg-type]
        raise InvalidParameter(param, f"at most {limit} entries, got {len(values)}")  # type: ignore[arg-type]


def _stops(stop: tuple[str, ...]) -> None:
    _count("stop", stop, MAX_STOP_STRINGS)
    for text in stop:
        if not isinstance(text, str) or not text:
            raise InvalidParameter("stop", "every stop string must be a non-empty string")
        if len(text) > MAX_STOP_STRING_CHARS:
            raise InvalidParameter("stop", f"a stop string has at most {MAX_STOP_STRING_CHARS} characters")
