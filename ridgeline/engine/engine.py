"""The step loop: plan, execute, apply. The same in every world; only the executor and the clock differ."""

from __future__ import annotations

from collections import deque

from ridgeline.core.event import Event, FinishReason
from ridgeline.core.plan import StepPlan
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler
from ridgeline.engine.clock import Clock
from ridgeline.engine.executor import Executor, StepSeconds
from ridgeline.engine.recording import Recorder


class Engine:
    """One scheduler, one executor, one clock. Not thread-safe: one thread owns it.

    Args:
        scheduler: decides.
        executor: computes.
        clock: tells the time.
        overlap: make the plan of step n+1 while step n runs, so that planning costs no time.
        recorder: writes down what goes in and out, for replay and calibration.

    `seconds` says where the time of the steps went; it is the executor's own, if it measures.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        clock: Clock,
        overlap: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.clock = clock
        self.overlap = overlap
        self.seconds: StepSeconds = getattr(executor, "seconds", None) or StepSeconds()
        self._recorder = recorder
        self._in_flight: deque[StepPlan] = deque()
        if recorder is not None:
            recorder.begin(scheduler.config, scheduler.groups, scheduler.policy.name, overlap)

    def add(self, request: Request) -> list[Event]:
        """Queue a request.

        Raises:
            RequestRejected: it could never run.
        """
        now = self.clock.now()
        events = self.scheduler.add(request, now)
        if self._recorder is not None:
            self._recorder.added(now, request)
        return events

    def abort(self, request_id: str, reason: FinishReason = "abort") -> list[Event]:
        """Finish a request now; unknown or finished ones give no events. No later step computes it."""
        now = self.clock.now()
        if self._recorder is not None:
            self._recorder.aborted(now, request_id, reason)
        return self.scheduler.abort(request_id, now, reason)

    def step(self) -> list[Event]:
        """Plan, execute, apply. With overlap the events are those of the step before, if any."""
        submitted = self._submit()
        if not self._in_flight or (self.overlap and submitted and len(self._in_flight) == 1):
            return []
        return self._collect()

    def _submit(self) -> bool:
        now = self.clock.now()
        if self._recorder is not None:
            self._recorder.stepped(now)
        plan = self.scheduler.plan(now)
        self.seconds.schedule_s += self.clock.now() - now
        if plan is None:
            return False
        if self._recorder is not None:
            self._recorder.planned(now, plan)
        self.executor.submit(plan)
        self._in_flight.append(plan)
        return True

    def _collect(self) -> list[Event]:
        result = self.executor.collect()
        now = self.clock.now()
        if self._recorder is not None:
            self._recorder.collected(now, result)
        events = self.scheduler.apply(self._in_flight.popleft(), result, now)
        self.seconds.schedule_s += self.clock.now() - now
        return events

    def has_work(self) -> bool:
        """Whether another `step` would do anything."""
        return self.scheduler.has_work()

    def close(self) -> None:
        """Stop the executor and end the recording; requests still under way get no more events."""
        self.executor.close()
        if self._recorder is not None:
            self._recorder.close()
