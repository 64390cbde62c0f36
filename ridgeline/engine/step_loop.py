"""One engine and its output side, driven by whoever owns the thread: `AsyncEngine` or `LLM`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ridgeline.core.config import RequestRejected
from ridgeline.core.event import Event, FinishReason
from ridgeline.engine.errors import InvalidParameter
from ridgeline.engine.intake import Job
from ridgeline.engine.output_processor import Output, OutputProcessor

if TYPE_CHECKING:
    from ridgeline.engine.engine import Engine


class StepLoop:
    """Add jobs, step, abort; every call returns the deltas it gave rise to. Not thread-safe."""

    def __init__(self, engine: Engine, processor: OutputProcessor) -> None:
        self.engine = engine
        self._processor = processor
        self._jobs: dict[str, Job] = {}
        self._open: dict[str, set[int]] = {}  # completions of a job that have not finished
        self._events: list[Event] = []

    @property
    def jobs(self) -> dict[str, Job]:
        """Jobs with an unfinished completion, by id."""
        return self._jobs

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.engine.has_work()

    def add(self, job: Job) -> None:
        """Queue all of a job's requests, or none.

        Raises InvalidParameter when the scheduler refuses one, or the id is in use.
        """
        if job.id in self._jobs:
            raise InvalidParameter("request_id", f"{job.id!r} is already under way")
        started: list[str] = []
        try:
            for request in job.requests:
                self._events.extend(self.engine.add(request))
                started.append(request.id)
        except RequestRejected as error:
            for request_id in started:
                self._events.extend(self.engine.abort(request_id))
            param = "request_id" if error.param == "id" else error.param
            raise InvalidParameter(param, error.reason) from None
        self._processor.add(job)
        self._jobs[job.id] = job
        self._open[job.id] = set(range(len(job.requests)))

    def step(self) -> list[Output]:
        """One engine step. A completion whose stop string matched is aborted before the next."""
        events = self.engine.step()
        with self.outputs():
            return self._fold(events)

    @contextmanager
    def outputs(self) -> Iterator[None]:
        """What runs inside counts as the stage "output" of the steps."""
        clock = self.engine.clock
        start = clock.now()
        yield
        self.engine.seconds.output_s += clock.now() - start

    def abort(self, job_id: str, reason: FinishReason = "abort") -> list[Output]:
        """End what still runs of a job; an unknown id is no error."""
        job = self._jobs.get(job_id)
        if job is None:
            return []
        events: list[Event] = []
        for index in sorted(self._open[job_id]):  # the id of a finished one may be somebody else's by now
            events.extend(self.engine.abort(job.requests[index].id, reason))
        return self._fold(events)

    def fail(self, message: str) -> list[Output]:
        """End every job with an error, without the engine's help."""
        self._jobs.clear()
        self._open.clear()
        return self._processor.fail(message)

    def take_events(self) -> list[Event]:
        """All events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _fold(self, events: list[Event]) -> list[Output]:
        self._events.extend(events)
        outputs, matched = self._processor.process(events)
        if matched:
            stops: list[Event] = []
            for request_id in matched:
                stops.extend(self.engine.abort(request_id, "stop"))
            self._events.extend(stops)
            outputs += self._processor.process(stops)[0]
        for job_id, delta in outputs:
            if delta.finish_reason is not None:
                self._close_one(job_id, delta.index)
        return outputs

    def _close_one(self, job_id: str, index: int) -> None:
        self._open[job_id].discard(index)
        if not self._open[job_id]:
            del self._open[job_id], self._jobs[job_id]
