from __future__ import annotations

import pytest

from ridgeline.core.config import CacheGroup, SchedulerConfig
from ridgeline.core.event import Finished, StepCompleted, TokensGenerated
from ridgeline.core.plan import Admission, Row, StepPlan
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler
from ridgeline.engine.engine import Engine
from ridgeline.sim.checks import event_complaints
from ridgeline.sim.context_executor import ContextExecutor, CorruptContext, expected_tokens
from ridgeline.sim.executors import SimulatedExecutor, arbitrary_tokens, prompt_hash
from ridgeline.sim.run import simulate
from ridgeline.sim.virtual_clock import VirtualClock


def test_the_clock_moves_only_forward() -> None:
    clock = VirtualClock(5.0)
    clock.advance_to(3.0)
    assert clock.now() == 5.0
    clock.advance(0.5)
    assert clock.now() == 5.5
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


def test_tokens_depend_on_prompt_and_position_alone() -> None:
    token = arbitrary_tokens(100)
    drawn = [token(prompt_hash((1, 2)), position) for position in range(200)]
    assert drawn == [arbitrary_tokens(100)(prompt_hash((1, 2)), position) for position in range(200)]
    assert min(drawn) >= 0 and max(drawn) < 100 and len(set(drawn)) > 60
    assert prompt_hash((1, 2)) != prompt_hash((2, 1)) and prompt_hash(()) != prompt_hash((0,))


def texts(budget: int, num_blocks: int, overlap: bool) -> tuple[dict[str, tuple[int, ...]], float]:
    clock = VirtualClock()
    executor = SimulatedExecutor(clock, lambda plan: 1e-3 + 1e-5 * plan.num_tokens, arbitrary_tokens(1000))
    engine = Engine(Scheduler(SchedulerConfig(4, num_blocks, 8, budget, 200)), executor, clock, overlap)
    arrivals = [(0.004 * i, Request(f"r{i}", tuple(range(i, i + 20)), 15)) for i in range(10)]
    events = simulate(engine, clock, arrivals)
    engine.close()
    assert not event_complaints(events)
    generated: dict[str, tuple[int, ...]] = {}
    for event in events:
        if isinstance(event, TokensGenerated):
            generated[event.request_id] = generated.get(event.request_id, ()) + event.tokens
    assert all(len(tokens) == 15 for tokens in generated.values()) and len(generated) == 10
    return generated, clock.now()


def test_texts_do_not_depend_on_how_the_work_was_cut_up() -> None:
    reference, _ = texts(64, 200, False)
    for budget, num_blocks, overlap in ((64, 200, True), (3, 200, False), (17, 12, False), (17, 12, True)):
        assert texts(budget, num_blocks, overlap)[0] == reference


def test_a_simulated_run_is_the_same_every_time() -> None:
    assert texts(17, 12, True) == texts(17, 12, True)


def test_time_is_the_sum_of_durations_and_waits() -> None:
    clock = VirtualClock()
    executor = SimulatedExecutor(clock, lambda plan: 0.5 * plan.num_tokens)
    engine = Engine(Scheduler(SchedulerConfig(4, 20)), executor, clock)
    events = simulate(engine, clock, [(1.0, Request("a", (1, 2), 2)), (10.0, Request("b", (5,), 1))])
    ends = [event.time_s for event in events if isinstance(event, Finished)]
    assert ends == [1.0 + 0.5 * 2 + 0.5, 10.5]
    assert [event.seconds for event in events if isinstance(event, StepCompleted)] == [1.0, 0.5, 0.5]


def admission(name: str, prompt: tuple[int, ...]) -> Admission:
    return Admission(Request(name, prompt, 5), ())


def row(name: str, start: int, count: int, blocks: tuple[int, ...], samples: int = 0) -> Row:
    return Row(name, start, count, (blocks,), samples)


def plan(step: int, rows: tuple[Row, ...], *admitted: Admission) -> StepPlan:
    return StepPlan(step, rows, admitted, (), sum(row.count for row in rows))


def test_the_context_executor_says_what_a_model_would() -> None:
    executor = ContextExecutor(2, vocab_size=1000)
    executor.submit(plan(0, (row("a", 0, 3, (0, 1), 1),), admission("a", (4, 5, 6))))
    executor.submit(plan(1, (row("a", 3, 1, (0, 1), 1),)))
    assert (*executor.collect().tokens[0], *executor.collect().tokens[0]) == expected_tokens(
        (4, 5, 6), 2, 1000
    )


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (row("a", 2, 1, (3, 1)), "strange position 0"),
        (row("a", 2, 1, (0,)), "too short"),
        (row("a", 2, 1, (-1, 1)), "let go"),
        (row("a", 2, 1, (0, 1), 1), "before its last"),
        (row("b", 0, 1, (0,)), "in flight elsewhere"),
    ],
)
def test_the_context_executor_notices(second: Row, says: str) -> None:
    executor = ContextExecutor(2)
    executor.submit(plan(0, (row("a", 0, 2, (0,)),), admission("a", (4, 5, 6, 7)), admission("b", (8,))))
    with pytest.raises(CorruptContext, match=says):
        executor.submit(plan(1, (second,)))


def test_the_context_executor_notices_two_writers() -> None:
    executor = ContextExecutor(2, (CacheGroup(),))
    rows = (row("a", 0, 1, (0,)), row("b", 0, 1, (0,)))
    with pytest.raises(CorruptContext, match="another row"):
        executor.submit(plan(0, rows, admission("a", (4, 5)), admission("b", (8, 9))))
