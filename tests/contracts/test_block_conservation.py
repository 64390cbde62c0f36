"""Contract 2: after every step, free + cached + held = all blocks, and held is what the tables refer to."""

from __future__ import annotations

import random

import pytest

from ridgeline.core.config import CacheGroup, SchedulerConfig
from ridgeline.core.event import StepCompleted
from ridgeline.core.policy import POLICIES
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler
from ridgeline.engine.engine import Engine
from ridgeline.sim.checks import block_complaints, event_complaints
from ridgeline.sim.context_executor import ContextExecutor
from ridgeline.sim.virtual_clock import VirtualClock

GROUPS = {
    "full": (CacheGroup(),),
    "mixed": (CacheGroup(), CacheGroup(16), CacheGroup(16)),
    "windows": (CacheGroup(24),),
}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("layout", GROUPS)
def test_every_block_is_somewhere(layout: str, policy: str, overlap: bool) -> None:
    """A busy pool, too small for what runs: prefixes shared, requests preempted and aborted all along."""
    draw = random.Random(f"{layout} {policy}")
    groups = GROUPS[layout]
    config = SchedulerConfig(8, 40 * len(groups), 12, 64, 256)
    scheduler = Scheduler(config, groups, POLICIES[policy])
    clock = VirtualClock()
    engine = Engine(scheduler, ContextExecutor(8, groups, clock=clock), clock, overlap)
    prefix = tuple(range(40))
    events = []
    for i in range(80):
        prompt = prefix[: draw.randrange(41)] + tuple(
            draw.randrange(50) for _ in range(draw.randrange(1, 60))
        )
        request = Request(f"r{i}", prompt, draw.randrange(1, 60), priority=draw.randrange(3))
        events += engine.add(request)
        for _ in range(draw.randrange(4)):
            events += engine.step()
            assert not block_complaints(scheduler)
        if draw.random() < 0.2:
            events += engine.abort(f"r{draw.randrange(i + 1)}")
            assert not block_complaints(scheduler)
    while engine.has_work():
        events += engine.step()
        assert not block_complaints(scheduler)
    assert not event_complaints(events)
    stats = scheduler.stats()
    assert stats.num_held_blocks == 0 and stats.num_free_blocks + stats.num_cached_blocks == config.num_blocks
    assert stats.num_preemptions > 0 and stats.num_prefix_tokens_hit > 0, "the test lost its teeth"
    for event in events:
        if isinstance(event, StepCompleted):
            assert 0 <= event.num_free_blocks + event.num_cached_blocks <= event.num_blocks
