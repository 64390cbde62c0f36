"""Where the time of a step goes: stages on an injected clock, and shares that add up on a real engine."""

from __future__ import annotations

import itertools
import time

from ridgeline import LLM, SamplingParams
from ridgeline.core.config import CacheGroup, SchedulerConfig
from ridgeline.core.policy import POLICIES
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler
from ridgeline.engine.engine import Engine
from ridgeline.sim.executors import SimulatedExecutor
from ridgeline.sim.virtual_clock import VirtualClock


class TickingClock:
    """Every look takes a second."""

    def __init__(self) -> None:
        self._ticks = itertools.count()

    def now(self) -> float:
        return float(next(self._ticks))


def test_schedule_is_planning_and_applying() -> None:
    config = SchedulerConfig(
        block_size=4, num_blocks=16, max_num_seqs=2, max_num_batched_tokens=16, max_model_len=32
    )
    scheduler = Scheduler(config, (CacheGroup(None),), POLICIES["fcfs"])
    executor = SimulatedExecutor(VirtualClock(), lambda plan: 0.5)
    engine = Engine(scheduler, executor, TickingClock())
    engine.add(Request(id="a", prompt=(1, 2, 3), max_tokens=2))
    engine.step()
    assert engine.seconds.schedule_s == 2.0  # one look before and one after, of plan and of apply
    engine.step()
    assert engine.seconds.schedule_s == 4.0
    assert engine.seconds.forward_s == 0.0


def test_stages_fill_the_step(default_model_path) -> None:
    with LLM(str(default_model_path), kv_memory_bytes=64 << 20, max_num_seqs=4) as llm:
        llm.generate("warm", SamplingParams(max_tokens=2, temperature=0))
        before = llm.parts.engine.seconds.by_stage()
        start = time.perf_counter()
        llm.generate(["One", "Two"], SamplingParams(max_tokens=8, temperature=0, ignore_eos=True))
        wall = time.perf_counter() - start
        after = llm.parts.engine.seconds.by_stage()
    spent = {stage: after[stage] - before[stage] for stage in after}
    assert list(spent) == ["schedule", "batch", "kernels", "sample", "output"]
    assert all(seconds > 0 for seconds in spent.values())
    assert spent["kernels"] == max(spent.values())
    assert sum(spent.values()) < 2 * wall
