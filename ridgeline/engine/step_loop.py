"""One engine and its output side, driven by whoever owns the thread: `AsyncEngine` or `LLM`."""

from __future__ import annotations

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
        self._num_open: dict[str, int] = {}
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
        self._num_open[job.id] = len(job.requests)

    def step(self) -> list[Output]:
        """One engine step. A completion whose stop string matched is aborted before the next."""
        return self._fold(self.engine.step())

    def abort(self, job_id: str, reason: FinishReason = "abort") -> list[Output]:
        """End what still runs of a job; an unknown id is no error."""
        job = self._jobs.get(job_id)
        if job is None:
            return []
        events: list[Event] = []
        for request in job.requests:
            events.extend(self.engine.abort(request.id, reason))
        return self._fold(events)

    def fail(self, message: str) -> list[Output]:
        """End every job with an error, without the engine's help."""
        self._jobs.clear()
        self._num_open.clear()
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
                self._close_one(job_id)
        return outputs

    def _close_one(self, job_id: str) -> None:
        self._num_open[job_id] -= 1
        if not self._num_open[job_id]:
            del self._num_open[job_id], self._jobs[job_id]
