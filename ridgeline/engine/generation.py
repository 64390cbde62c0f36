"""One submitted request as its caller holds it, and the way from the engine thread to it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

from ridgeline.engine.intake import Job
from ridgeline.engine.output_processor import join_deltas
from ridgeline.engine.outputs import CompletionDelta, PositionLogprobs

_MERGE_AFTER = 32
"""Unread deltas of a completion are kept apart up to this many, then merged."""


class Generation:
    """One submitted request: an async iterator of the deltas of all its completions, interleaved.

    Leaving it early (`aclose`, cancellation of the task that waits, garbage collection) aborts what
    still runs within a step. For one reader, in the event loop in which it was submitted.

    Attributes:
        job: what was submitted, as core requests.
        prompt_logprobs: set when the delta that carries them has been read.
    """

    def __init__(self, job: Job, abort: Callable[[str], None]) -> None:
        self.job = job
        self.prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, list[CompletionDelta]] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._num_open = len(job.requests)  # completions whose last delta has not arrived
        self._closed = True  # until the engine has taken it

    @property
    def request_id(self) -> str:
        """The id given or drawn at submission."""
        return self.job.id

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        """The prompt in tokens."""
        return self.job.prompt_token_ids

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> CompletionDelta:
        while not self._pending:
            if self._num_open == 0 or self._closed:
                raise StopAsyncIteration
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self._leave()
                raise
            finally:
                self._waiter = None
        delta = join_deltas(self._pending.pop(next(iter(self._pending))))
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        return delta

    async def aclose(self) -> None:
        """Abort what still runs; later reads end at once."""
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def open(self) -> None:
        """The engine has taken the job: from now on leaving means aborting."""
        self._closed = False

    def _leave(self) -> None:
        if not self._closed:
            self._closed = True
            self._pending.clear()
            if self._num_open:
                self._abort(self.job.id)

    def put(self, delta: CompletionDelta) -> None:
        """In the event loop: take a delta of a step."""
        if delta.finish_reason is not None:
            self._num_open -= 1
        if self._closed:
            return
        waiting = self._pending.setdefault(delta.index, [])
        waiting.append(delta)
        if len(waiting) > _MERGE_AFTER:
            waiting[:] = [join_deltas(waiting)]
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Route:
    """From the engine thread to a `Generation`, without keeping it alive."""

    __slots__ = ("generation", "loop", "num_requests")

    def __init__(self, generation: Generation, loop: asyncio.AbstractEventLoop, num_requests: int) -> None:
        self.generation = weakref.ref(generation)
        self.loop = loop
        self.num_requests = num_requests

    def put(self, delta: CompletionDelta) -> None:
        """In the event loop: pass a delta on, if anybody still wants it."""
        generation = self.generation()
        if generation is not None:
            generation.put(delta)
