"""Run an engine on a virtual clock: from arrivals, or from a recording."""

from __future__ import annotations

from collections.abc import Iterable

from ridgeline.core.event import Event
from ridgeline.core.request import Request
from ridgeline.engine.engine import Engine
from ridgeline.engine.recording import Aborted, Added, Recorder, Recording, Stepped
from ridgeline.sim.executors import ReplayedExecutor
from ridgeline.sim.virtual_clock import VirtualClock


def simulate(engine: Engine, clock: VirtualClock, arrivals: Iterable[tuple[float, Request]]) -> list[Event]:
    """Feed requests at their times (seconds, ascending) and step until all is done.

    A request that arrives during a step is seen after it, as in a server. Rejection raises.
    """
    events: list[Event] = []
    pending = list(arrivals)
    pending.reverse()
    while pending or engine.has_work():
        if not engine.has_work():
            clock.advance_to(pending[-1][0])
        while pending and pending[-1][0] <= clock.now():
            events += engine.add(pending.pop()[1])
        events += engine.step()
    return events


def replay(recording: Recording, recorder: Recorder | None = None) -> list[Event]:
    """Make every recorded call again, on a fresh scheduler and a virtual clock.

    Raises:
        PlanMismatch: a plan differs from the recorded one (contract 3 is broken).
    """
    clock = VirtualClock(recording.entries[0].time_s if recording.entries else 0.0)
    executor = ReplayedExecutor(recording, clock)
    engine = Engine(recording.scheduler(), executor, clock, recording.overlap, recorder)
    events: list[Event] = []
    for entry in recording.entries:
        if isinstance(entry, Added):
            clock.advance_to(entry.time_s)
            events += engine.add(entry.request)
        elif isinstance(entry, Aborted):
            clock.advance_to(entry.time_s)
            events += engine.abort(entry.request_id, entry.reason)
        elif isinstance(entry, Stepped):
            clock.advance_to(entry.time_s)
            events += engine.step()
    engine.close()
    return events
