from __future__ import annotations

import io
from pathlib import Path

import pytest

from ridgeline.core.config import RequestRejected, SchedulerConfig
from ridgeline.core.event import Arrived, Event, Finished, StepCompleted
from ridgeline.core.plan import StepPlan, StepResult
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler
from ridgeline.engine.clock import MonotonicClock
from ridgeline.engine.engine import Engine
from ridgeline.engine.recording import (
    Added,
    MalformedRecording,
    Recorder,
    read_recording,
    timed_plans,
)
from ridgeline.sim.context_executor import ContextExecutor
from ridgeline.sim.virtual_clock import VirtualClock


class Watched(ContextExecutor):
    """Writes down the order of calls."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(4, clock=clock)
        self.calls: list[str] = []
        self.closed = False

    def submit(self, plan: StepPlan) -> None:
        self.calls.append(f"submit {plan.step}")
        super().submit(plan)

    def collect(self) -> StepResult:
        result = super().collect()
        self.calls.append(f"collect {result.step}")
        return result

    def close(self) -> None:
        self.closed = True


def engine_of(overlap: bool = False, recorder: Recorder | None = None) -> tuple[Engine, Watched]:
    clock = VirtualClock()
    executor = Watched(clock)
    return Engine(Scheduler(SchedulerConfig(4, 32)), executor, clock, overlap, recorder), executor


def drain(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while engine.has_work():
        events += engine.step()
    return events


def test_a_step_is_plan_execute_apply() -> None:
    engine, executor = engine_of()
    assert engine.step() == [] and not engine.has_work()
    assert engine.add(Request("a", (1, 2), 2)) == [Arrived(0.0, "a", 2)]
    drain(engine)
    assert executor.calls == ["submit 0", "collect 0", "submit 1", "collect 1"]
    engine.close()
    assert executor.closed


def test_with_overlap_one_plan_is_kept_in_flight() -> None:
    engine, executor = engine_of(overlap=True)
    engine.add(Request("a", (1, 2), 3))
    assert engine.step() == []
    assert isinstance(engine.step()[-1], StepCompleted)
    drain(engine)
    assert executor.calls == ["submit 0", "submit 1", "collect 0", "submit 2", "collect 1", "collect 2"]


@pytest.mark.parametrize("overlap", [False, True])
def test_abort_takes_effect_within_a_step(overlap: bool) -> None:
    engine, _ = engine_of(overlap)
    engine.add(Request("a", (1, 2), 30))
    for _ in range(4):
        engine.step()
    (end,) = engine.abort("a", "stop")
    assert isinstance(end, Finished) and end.reason == "stop"
    rest = drain(engine)
    assert all(isinstance(event, StepCompleted) for event in rest) and len(rest) == int(overlap)
    assert engine.scheduler.stats().num_held_blocks == 0


def test_rejection_reaches_the_caller_and_is_not_recorded() -> None:
    file = io.StringIO()
    engine, _ = engine_of(recorder=Recorder(file))
    with pytest.raises(RequestRejected):
        engine.add(Request("a", (), 3))
    assert not read_recording(io.StringIO(file.getvalue())).entries


def test_the_machine_clock_runs_forward() -> None:
    clock = MonotonicClock()
    assert clock.now() <= clock.now()


def test_a_recording_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    engine, _ = engine_of(recorder=Recorder(path))
    request = Request("a", (1, 2, 3), 4, frozenset({49}), 1, -2, b"\x00\xff", True)
    engine.add(request)
    drain(engine)
    engine.abort("nobody")
    engine.close()
    recording = read_recording(path)
    assert isinstance(recording.entries[0], Added) and recording.entries[0].request == request
    assert recording.config == engine.scheduler.config and recording.policy == "fcfs"
    pairs = list(timed_plans(recording))
    assert [plan.step for plan, _ in pairs] == list(range(len(recording.plans())))
    assert {seconds for _, seconds in pairs} == {0.001}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1"),
        ("[]\n", "line 1"),
        ('{"kind":"begin","format":99}\n', "line 1: .*format 1"),
        ("{head}nonsense\n", "line 2: JSONDecodeError"),
        ('{head}{"kind":"dance","t":1}\n', "line 2: .*'dance'"),
        ('{head}{"kind":"abort","t":1,"id":"a","reason":"boredom"}\n', "line 2: .*boredom"),
        ('{head}{"kind":"add","t":1}\n', "line 2: KeyError"),
        ('{head}{"kind":"plan","t":1,"rows":[[1]]}\n', "line 2"),
    ],
)
def test_a_malformed_recording_is_refused_with_its_line(text: str, says: str) -> None:
    file = io.StringIO()
    engine_of(recorder=Recorder(file))
    with pytest.raises(MalformedRecording, match=says):
        read_recording(io.StringIO(text.replace("{head}", file.getvalue())))
