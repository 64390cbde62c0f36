"""The engine's public front for asyncio: one engine thread that steps, coroutines that wait.

    submit --commands--> [engine thread: drain commands, step, fold] --one call per step--> event loop

Nothing here blocks an event loop on a step. A command (add, abort) is taken up before the next plan.
The deltas of a step reach a loop in one `call_soon_threadsafe`, whatever the number of requests.
While a caller does not read, the deltas of a completion pile up merged, so what waits for a slow
reader is bounded by the text itself.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ridgeline.core.event import Event, FinishReason, StepCompleted
from ridgeline.engine.errors import EngineClosed, EngineOverloaded, InvalidParameter
from ridgeline.engine.generation import Generation, Route
from ridgeline.engine.intake import Job
from ridgeline.engine.output_processor import Output, OutputBuilder
from ridgeline.engine.outputs import CompletionDelta, RequestOutput
from ridgeline.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from ridgeline.engine.build import EngineParts, StageProgress
    from ridgeline.engine.options import EngineOptions

__all__ = ["AsyncEngine", "EngineStats", "Generation"]

logger = logging.getLogger(__name__)

LONG_PROMPT_CHARS = 8_192
"""Longer texts are tokenized in a thread, not on the event loop."""

_DRAIN_POLL_S = 0.01
_MAX_RETRY_AFTER_S = 60.0

EventCallback = Callable[[list[Event]], None]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges of the moment. `num_free_blocks` hold nothing, `num_cached_blocks` could be freed."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_cached_blocks: int
    num_blocks: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class _Add:
    job: Job
    route: Route


@dataclass(frozen=True, slots=True)
class _Abort:
    job_id: str | None  # None: every job


_CLOSE = None
_Command = _Add | _Abort | None


class AsyncEngine:
    """A loaded model behind asyncio. Make it with `from_options` (blocking, so in a thread), then `start`.

    Attributes: `config`, `spec`, `tokenizer`, `chat_template` (None where the model has none),
    `model_name` (what the API calls it) and `parts`.
    """

    def __init__(self, parts: EngineParts) -> None:
        self.parts = parts
        self.config = parts.config
        self.spec = parts.spec
        self.tokenizer = parts.tokenizer
        self.chat_template = parts.chat_template
        self.model_name = parts.model_name
        self._intake = parts.intake
        self._loop = parts.step_loop()
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._routes: dict[str, Route] = {}  # engine thread only, as is
        self._outbox: list[Output] = []
        self._subscribers: tuple[EventCallback, ...] = ()
        self._thread = threading.Thread(target=self._run, name="ridgeline-engine", daemon=True)
        self._lock = threading.Lock()
        self._num_unfinished = 0  # core requests submitted and not finished; under the lock
        self._live_ids: set[str] = set()  # jobs likewise; under the lock
        self._ended = False  # the thread takes no more commands; under the lock
        self._finish_times: deque[float] = deque(maxlen=64)
        self._ids = itertools.count()
        self._draining = False
        self._closing = False
        self._failure: str | None = None
        self._stats = EngineStats(0, 0, self.config.num_blocks, 0, self.config.num_blocks, 0)

    @classmethod
    def from_options(cls, options: EngineOptions, *, progress: StageProgress | None = None) -> AsyncEngine:
        """Load (blocking). Raises ModelNotFound, UnsupportedModel, ConfigError, MalformedFile."""
        from ridgeline.engine.build import build_engine

        return cls(build_engine(options, progress))

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the engine thread. Idempotent. Raises EngineClosed after `close`."""
        if self._closing:
            raise EngineClosed("the engine is closed")
        if not self._thread.is_alive() and self._failure is None:
            self._thread.start()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for the live ones; after `timeout_s` abort the rest.

        True if none had to be aborted.
        """
        self._draining = True
        deadline = time.monotonic() + timeout_s
        while self._num_unfinished and self.is_healthy and time.monotonic() < deadline:
            await asyncio.sleep(_DRAIN_POLL_S)
        finished = self._num_unfinished == 0
        if not finished:
            self._commands.put(_Abort(None))
        return finished

    async def close(self) -> None:
        """Abort everything, end the thread, free the executor. Idempotent."""
        self._draining = True
        first, self._closing = not self._closing, True
        if not first:
            return
        if self._thread.is_alive():
            self._commands.put(_CLOSE)
            await asyncio.to_thread(self._thread.join)
        elif self._failure is None:
            self.parts.engine.close()

    @property
    def is_healthy(self) -> bool:
        """The engine thread has not died of an error."""
        return self._failure is None

    @property
    def is_ready(self) -> bool:
        """Started, healthy, not draining."""
        return self._thread.is_alive() and self.is_healthy and not self._draining

    def stats(self) -> EngineStats:
        """The gauges after the last step, with what has been submitted since counted as waiting."""
        now = self._stats
        waiting = max(now.num_waiting, self._num_unfinished - now.num_running)
        return EngineStats(
            now.num_running,
            waiting,
            now.num_free_blocks,
            now.num_cached_blocks,
            now.num_blocks,
            now.num_steps,
        )

    def stage_seconds(self) -> dict[str, float]:
        """Seconds of all steps so far by stage: schedule, batch, kernels, sample, output."""
        return self.parts.engine.seconds.by_stage()

    def subscribe(self, callback: EventCallback) -> Callable[[], None]:
        """Call `callback` in the engine thread with the events of each step; returns the unsubscriber.

        An exception in it is logged and otherwise of no consequence.
        """
        self._subscribers = (*self._subscribers, callback)

        def unsubscribe() -> None:
            self._subscribers = tuple(entry for entry in self._subscribers if entry is not callback)

        return unsubscribe

    # -- requests ------------------------------------------------------------------------------

    async def encode(
        self, prompt: str | Sequence[int], *, add_special_tokens: bool = True
    ) -> tuple[int, ...]:
        """Token ids of a prompt, checked; long texts are tokenized off the event loop.

        Raises InvalidParameter("prompt", ...), ContextLengthExceeded.
        """
        if isinstance(prompt, str) and len(prompt) > LONG_PROMPT_CHARS:
            return await asyncio.to_thread(self._intake.encode, prompt, add_special_tokens)
        return self._intake.encode(prompt, add_special_tokens)

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
        """Check everything and enqueue: every refusal is raised here, before the first token.

        `add_special_tokens=False` is for rendered chats, which carry their own. n completions are n
        core requests, "id-0" and on.
        Raises InvalidParameter, ContextLengthExceeded, EngineOverloaded, EngineClosed.
        """
        self._reserve(params.n)
        try:
            token_ids = await self.encode(prompt, add_special_tokens=add_special_tokens)
            job = self._intake.job(
                f"ridgeline-{next(self._ids)}" if request_id is None else request_id,
                token_ids,
                params,
                priority=priority,
                cache_salt=cache_salt,
                prompt=prompt if isinstance(prompt, str) else None,
            )
            return self._enqueue(job)
        except BaseException:
            self._release(params.n)
            raise

    async def generate(
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
        generation = await self.submit(
            prompt,
            params,
            request_id=request_id,
            priority=priority,
            cache_salt=cache_salt,
            add_special_tokens=add_special_tokens,
        )
        try:
            async for delta in generation:
                yield delta
        finally:
            await generation.aclose()

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
        generation = await self.submit(
            prompt,
            params,
            request_id=request_id,
            priority=priority,
            cache_salt=cache_salt,
            add_special_tokens=add_special_tokens,
        )
        builder = OutputBuilder(generation.job)
        try:
            async for delta in generation:
                builder.add(delta)
        finally:
            await generation.aclose()
        return builder.build()

    def abort(self, request_id: str) -> None:
        """End a request with finish_reason "abort" within one step; unknown ids are no error. Thread-safe."""
        self._commands.put(_Abort(request_id))

    # -- admission -----------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._failure is not None:
            raise EngineClosed(f"the engine has failed: {self._failure}")
        if self._draining or self._closing or self._ended:
            raise EngineClosed("the engine is shutting down and takes no more requests")
        if not self._thread.is_alive():
            raise EngineClosed("the engine has not been started")

    def _reserve(self, num_requests: int) -> None:
        """Take places in the queue, before any work is done for the request."""
        self._check_open()
        limit = self.config.max_queue
        if num_requests > limit + self.config.max_num_seqs:
            raise InvalidParameter(
                "n", f"at most {limit + self.config.max_num_seqs} completions fit the queue"
            )
        with self._lock:
            stats = self._stats
            seats = 0 if stats.num_waiting else self.config.max_num_seqs - stats.num_running
            waiting = self._num_unfinished - stats.num_running
            if waiting + num_requests > limit + seats:
                raise EngineOverloaded(max(waiting, 0), limit, self._retry_after_s(waiting))
            self._num_unfinished += num_requests

    def _enqueue(self, job: Job) -> Generation:
        """Hand a job to the engine thread. Raises InvalidParameter for an id in use, EngineClosed."""
        generation = Generation(job, self.abort)
        route = Route(generation, asyncio.get_running_loop(), len(job.requests))
        with self._lock:
            self._check_open()
            if job.id in self._live_ids:
                raise InvalidParameter("request_id", f"{job.id!r} is already under way")
            self._live_ids.add(job.id)
            self._commands.put(_Add(job, route))
        generation.open()
        return generation

    def _release(self, num_requests: int, job_ids: Iterable[str] = ()) -> None:
        with self._lock:
            self._num_unfinished -= num_requests
            self._live_ids.difference_update(job_ids)

    def _retry_after_s(self, num_waiting: int) -> float:
        """Time for the queue to empty at the rate at which requests finished lately."""
        times = tuple(self._finish_times)
        elapsed = times[-1] - times[0] if len(times) > 1 else 0.0
        if elapsed <= 0.0:
            return 1.0
        return min(max(num_waiting * elapsed / (len(times) - 1), 1.0), _MAX_RETRY_AFTER_S)

    # -- the engine thread ---------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._take_commands():
                if self._loop.has_work():
                    self._outbox += self._loop.step()
                with self._loop.outputs():
                    self._publish()
                    self._deliver()
            self._end("the engine was closed", "abort")
        except BaseException as error:
            logger.exception("the engine thread failed")
            self._failure = f"{type(error).__name__}: {error}"
            self._end(self._failure, "error")
        finally:
            try:
                self.parts.engine.close()
            except Exception:
                logger.exception("closing the executor failed")

    def _take_commands(self) -> bool:
        """Carry out what has been asked for; waits when there is nothing else to do. False: close."""
        idle = not self._loop.has_work()
        while idle or not self._commands.empty():
            command = self._commands.get()
            if command is _CLOSE:
                return False
            self._carry_out(command)
            idle = False
        return True

    def _carry_out(self, command: _Add | _Abort) -> None:
        if isinstance(command, _Abort):
            for job_id in (command.job_id,) if command.job_id is not None else tuple(self._loop.jobs):
                self._outbox += self._loop.abort(job_id)
            return
        job, route = command.job, command.route
        try:
            self._loop.add(job)
        except InvalidParameter as error:
            self._refuse(command, str(error), "error")
            return
        self._routes[job.id] = route

    def _deliver(self) -> None:
        """Hand the deltas of a round to their event loops, one call for each loop."""
        outputs, self._outbox = self._outbox, []
        if not outputs:
            return
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Route, CompletionDelta]]] = {}
        num_finished = 0
        for job_id, delta in outputs:
            route = self._routes[job_id]
            by_loop.setdefault(route.loop, []).append((route, delta))
            num_finished += delta.finish_reason is not None
        if num_finished:
            ended = {job_id for job_id, _ in outputs if job_id not in self._loop.jobs}
            for job_id in ended:
                del self._routes[job_id]
            self._release(num_finished, ended)
            self._finish_times.extend([time.monotonic()] * num_finished)
        for loop, deltas in by_loop.items():
            self._send(loop, deltas)

    def _send(self, loop: asyncio.AbstractEventLoop, deltas: list[tuple[Route, CompletionDelta]]) -> None:
        try:
            loop.call_soon_threadsafe(_put_all, deltas)
        except RuntimeError:  # that loop is closed: nobody will read these
            for route, delta in deltas:
                generation = route.generation()
                if delta.finish_reason is None and generation is not None:
                    self._commands.put(_Abort(generation.job.id))

    def _publish(self) -> None:
        """Gauges and subscribers, before the deltas: who has an answer finds it counted."""
        events = self._loop.take_events()
        if not events:
            return
        last = next((event for event in reversed(events) if isinstance(event, StepCompleted)), None)
        if last is not None:
            self._stats = EngineStats(
                last.num_running,
                last.num_waiting,
                last.num_free_blocks,
                last.num_cached_blocks,
                last.num_blocks,
                last.step + 1,
            )
        if not self._loop.has_work():
            self._take_stock()
        for callback in self._subscribers:
            try:
                callback(events)
            except Exception:
                logger.exception("a subscriber to the engine's events failed")

    def _take_stock(self) -> None:
        """The exact gauges, where no further step will bring them."""
        stats = self.parts.engine.scheduler.stats()
        self._stats = EngineStats(
            stats.num_running,
            stats.num_waiting,
            stats.num_free_blocks,
            stats.num_cached_blocks,
            stats.num_blocks,
            self._stats.num_steps,
        )

    def _end(self, message: str, reason: FinishReason) -> None:
        """Every live request gets its last delta: nothing may wait for an engine that is gone."""
        if reason == "abort":
            for job_id in tuple(self._loop.jobs):
                self._outbox += self._loop.abort(job_id)
            self._publish()
        else:
            self._outbox += self._loop.fail(message)
        self._deliver()
        with self._lock:
            self._ended = True
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Add):
                self._refuse(command, message, reason)

    def _refuse(self, command: _Add, message: str, reason: FinishReason) -> None:
        """The only deltas of a job that never ran."""
        job, route = command.job, command.route
        self._release(route.num_requests, (job.id,))
        deltas = [
            CompletionDelta(index, "", (), finish_reason=reason, error=message)
            for index in range(route.num_requests)
        ]
        self._send(route.loop, [(route, delta) for delta in deltas])


def _put_all(deltas: list[tuple[Route, CompletionDelta]]) -> None:
    for route, delta in deltas:
        route.put(delta)
