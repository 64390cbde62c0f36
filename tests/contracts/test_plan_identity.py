"""Contract 3: a recorded run, replayed with the recorded durations, gives the identical sequence of plans."""

from __future__ import annotations

import io
import random

import pytest

from ridgeline.core.config import CacheGroup, SchedulerConfig
from ridgeline.core.plan import StepPlan
from ridgeline.core.policy import POLICIES
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler
from ridgeline.engine.clock import MonotonicClock
from ridgeline.engine.engine import Engine
from ridgeline.engine.recording import Recorder, read_recording
from ridgeline.sim.executors import PlanMismatch, SimulatedExecutor, arbitrary_tokens
from ridgeline.sim.run import replay
from ridgeline.sim.virtual_clock import VirtualClock


def record(policy: str, overlap: bool, groups: tuple[CacheGroup, ...]) -> tuple[str, list]:
    """A run on the machine's own clock, with everything that can happen in it."""
    draw = random.Random(3)
    file = io.StringIO()
    steps = iter(range(10_000))

    def fault(plan: StepPlan) -> str | None:
        return "a fault" if next(steps) == 17 else None

    executor = SimulatedExecutor(
        VirtualClock(), lambda plan: 1e-4 * plan.num_tokens, arbitrary_tokens(30), fault
    )
    scheduler = Scheduler(SchedulerConfig(4, 48, 6, 24, 120), groups, POLICIES[policy])
    engine = Engine(scheduler, executor, MonotonicClock(), overlap, Recorder(file))
    events = []
    for i in range(30):
        prompt = tuple(range(draw.randrange(1, 12))) + tuple(
            draw.randrange(30) for _ in range(draw.randrange(20))
        )
        stops = frozenset({1, 2}) if i % 2 else frozenset()
        events += engine.add(
            Request(f"r{i}", prompt or (1,), 20, stops, 2, draw.randrange(3), b"\xff" * (i % 2), i % 7 == 0)
        )
        for _ in range(draw.randrange(4)):
            events += engine.step()
        if i % 5 == 4:
            events += engine.abort(f"r{i - 1}", "stop")
    while engine.has_work():
        events += engine.step()
    engine.close()
    return file.getvalue(), events


@pytest.mark.parametrize("groups", [(CacheGroup(),), (CacheGroup(), CacheGroup(6))], ids=["full", "mixed"])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_replay_plans_the_same(policy: str, overlap: bool, groups: tuple[CacheGroup, ...]) -> None:
    text, events = record(policy, overlap, groups)
    recording = read_recording(io.StringIO(text))
    again = io.StringIO()
    replayed = replay(recording, Recorder(again))
    assert read_recording(io.StringIO(again.getvalue())).plans() == recording.plans()
    assert len(recording.plans()) > 30
    assert again.getvalue() == text, "times and results are the recorded ones too"
    assert replayed == events


def test_a_changed_scheduler_is_noticed() -> None:
    text, _ = record("fcfs", False, (CacheGroup(),))
    recording = read_recording(
        io.StringIO(text.replace('"max_num_batched_tokens":24', '"max_num_batched_tokens":23'))
    )
    with pytest.raises(PlanMismatch, match="recorded"):
        replay(recording)
