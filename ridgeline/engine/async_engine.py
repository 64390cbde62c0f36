"""The engine's public front for asyncio: an engine thread that steps, and coroutines that wait."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ridgeline.core.event import Event
from ridgeline.engine.outputs import CompletionDelta, PositionLogprobs, RequestOutput
from ridgeline.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from ridgeline.engine.build import EngineParts
    from ridgeline.engine.chat import ChatTemplate
    from ridgeline.engine.options import EngineOptions
    from ridgeline.engine.resolve import EngineConfig
    from ridgeline.engine.tokenizing import Tokenizer
    from ridgeline.facts.model_spec import ModelSpec


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges of the moment (after the last step)."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_cached_blocks: int
    num_blocks: int
    num_steps: int


class Generation:
    """One submitted request: an async iterator of the deltas of all its completions, interleaved.

    Closing it (`aclose`, cancellation of the waiting task, garbage collection) aborts what still
    runs. While nobody reads, deltas of a completion merge into one.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    num_completions: int
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None

    def __aiter__(self) -> Generation: ...
    async def __anext__(self) -> CompletionDelta: ...
    async def aclose(self) -> None: ...


class AsyncEngine:
    """See the module docstring. Attributes are set once loading ends."""

    config: EngineConfig
    spec: ModelSpec
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    model_name: str
    parts: EngineParts

    @classmethod
    def from_options(
        cls, options: EngineOptions, *, progress: Callable[[str, float | None], None] | None = None
    ) -> AsyncEngine:
        """Load (blocking, seconds). Raises ModelNotFound, UnsupportedModel, ConfigError, MalformedFile."""
        ...

    async def start(self) -> None:
        """Start the engine thread. Idempotent."""
        ...

    async def encode(self, prompt: str | Sequence[int], *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of a prompt, checked against vocabulary and context. Long texts are tokenized off the event loop.

        Raises InvalidParameter("prompt", ...), ContextLengthExceeded.
        """
        ...

    async def submit(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        add_special_tokens: bool = True,
    ) -> Generation:
        """Check everything and enqueue. Every refusal is raised here, before the first token.

        Raises InvalidParameter, ContextLengthExceeded, EngineOverloaded, EngineClosed.
        `add_special_tokens=False` is for rendered chats, which carry their own.
        """
        ...

    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        add_special_tokens: bool = True,
    ) -> AsyncIterator[CompletionDelta]:
        """`submit` and iterate; closing or cancelling aborts within a step."""
        ...

    async def complete(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        add_special_tokens: bool = True,
    ) -> RequestOutput:
        """The whole output. Cancelling aborts."""
        ...

    def abort(self, request_id: str) -> None:
        """End a request (all its completions) with finish_reason "abort" within one step; unknown ids are no error."""
        ...

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests, wait for the live ones; after timeout_s abort the rest. True if none had to be."""
        ...

    async def close(self) -> None:
        """Abort everything, end the thread, free the executor. Idempotent."""
        ...

    @property
    def is_ready(self) -> bool:
        """Started, healthy, not draining."""
        ...

    @property
    def is_healthy(self) -> bool:
        """The engine thread has not died of an error."""
        ...

    def stats(self) -> EngineStats: ...

    def subscribe(self, callback: Callable[[list[Event]], None]) -> Callable[[], None]:
        """Call `callback` in the engine thread with the events of each step; returns the unsubscriber."""
        ...
