from __future__ import annotations

import pytest

from ridgeline.core.config import CacheGroup, IllegalMove, RequestRejected, SchedulerConfig
from ridgeline.core.event import (
    Admitted,
    Event,
    Finished,
    Preempted,
    PromptComputed,
    StepCompleted,
    TokensGenerated,
)
from ridgeline.core.plan import NO_BLOCK, StepPlan, StepResult
from ridgeline.core.policy import FCFS, PRIORITY, Policy
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler
from ridgeline.sim.checks import block_complaints


def scheduler(
    block_size: int = 4,
    num_blocks: int = 64,
    max_num_seqs: int = 8,
    budget: int = 64,
    max_model_len: int = 200,
    caching: bool = True,
    groups: tuple[CacheGroup, ...] = (CacheGroup(),),
    policy: Policy = FCFS,
) -> Scheduler:
    config = SchedulerConfig(block_size, num_blocks, max_num_seqs, budget, max_model_len, caching)
    return Scheduler(config, groups, policy)


def request(name: str, num_prompt: int, max_tokens: int = 4, first: int = 0, **fields: object) -> Request:
    return Request(name, tuple(range(first, first + num_prompt)), max_tokens, **fields)  # type: ignore[arg-type]


def result(plan: StepPlan, token: int = 900, error: str | None = None) -> StepResult:
    return StepResult(plan.step, tuple((token,) * row.num_samples for row in plan.rows), 0.01, error=error)


def step(machine: Scheduler, token: int = 900) -> tuple[StepPlan, list[Event]]:
    plan = machine.plan(0.0)
    assert plan is not None
    return plan, machine.apply(plan, result(plan, token), 0.0)


def run(machine: Scheduler, most: int = 500) -> list[Event]:
    events: list[Event] = []
    for _ in range(most):
        if not machine.has_work():
            return events
        events += step(machine)[1]
        assert not block_complaints(machine)
    raise AssertionError("no end")


def of(events: list[Event], kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


def spans(plan: StepPlan) -> dict[str, tuple[int, int, int]]:
    return {row.request_id: (row.start, row.count, row.num_samples) for row in plan.rows}


# Rows and budget


def test_a_prompt_is_cut_to_the_budget_and_samples_only_at_its_end() -> None:
    machine = scheduler(budget=5)
    machine.add(request("a", 12), 0.0)
    seen = [spans(step(machine)[0])["a"] for _ in range(4)]
    assert seen == [(0, 5, 0), (5, 5, 0), (10, 2, 1), (12, 1, 1)]


def test_budget_of_one_token_serves_in_order() -> None:
    machine = scheduler(budget=1)
    for name in "ab":
        machine.add(request(name, 3, 2, first=10 * ord(name)), 0.0)
    events = run(machine)
    assert [event.request_id for event in of(events, Finished)] == ["a", "b"]
    assert all(event.num_tokens == 1 for event in of(events, StepCompleted))


def test_decoding_goes_on_beside_a_long_prompt_that_ranks_first() -> None:
    machine = scheduler(budget=8, num_blocks=100, policy=PRIORITY)
    machine.add(request("x", 2, 30, first=500, priority=1), 0.0)
    step(machine)
    machine.add(request("long", 60, 5, priority=0), 0.0)
    plans = [spans(step(machine)[0]) for _ in range(12)]
    assert all(plan["x"][1] == 1 for plan in plans)
    assert [plan["long"][1] for plan in plans[:10]] == [7, 7, 7, 7, 7, 7, 7, 7, 4, 1]


def test_continuous_batching_admits_when_a_seat_is_free() -> None:
    machine = scheduler(max_num_seqs=2)
    for i, name in enumerate("abc"):
        machine.add(request(name, 3, 2 + i, first=100 * i), 0.0)
    assert set(spans(step(machine)[0])) == {"a", "b"}
    assert set(spans(step(machine)[0])) == {"a", "b"}
    assert set(spans(step(machine)[0])) == {"b", "c"}


def test_prefill_tokens_of_a_step_are_counted_apart() -> None:
    machine = scheduler()
    machine.add(request("a", 6), 0.0)
    step(machine)
    machine.add(request("b", 5, first=50), 0.0)
    done = of(step(machine)[1], StepCompleted)[0]
    assert (done.num_tokens, done.num_prefill_tokens, done.num_rows) == (6, 5, 2)


# Ends


def test_max_tokens_ends_with_length_and_one_token_is_enough() -> None:
    machine = scheduler()
    machine.add(request("a", 3, 1), 0.0)
    events = run(machine)
    (end,) = of(events, Finished)
    assert (end.reason, end.num_generated_tokens, end.stop_token_id) == ("length", 1, None)
    assert [event.first for event in of(events, TokensGenerated)] == [True]


def test_the_context_limit_ends_with_length() -> None:
    machine = scheduler(max_model_len=10)
    machine.add(request("a", 7, 100), 0.0)
    (end,) = of(run(machine), Finished)
    assert (end.reason, end.num_generated_tokens) == ("length", 3)


def test_a_small_pool_is_a_smaller_context_limit() -> None:
    machine = scheduler(num_blocks=3, max_model_len=200)
    assert machine.context_limit == 13
    machine.add(request("a", 7, 100), 0.0)
    (end,) = of(run(machine), Finished)
    assert (end.reason, end.num_generated_tokens) == ("length", 6)


def test_stop_tokens_count_only_after_min_tokens() -> None:
    machine = scheduler()
    machine.add(request("a", 3, 10, stop_token_ids=frozenset({900}), min_tokens=3), 0.0)
    machine.add(request("b", 3, 10, stop_token_ids=frozenset({900}), first=50), 0.0)
    ends = {event.request_id: event for event in of(run(machine), Finished)}
    assert (ends["a"].reason, ends["a"].num_generated_tokens, ends["a"].stop_token_id) == ("stop", 3, 900)
    assert ends["b"].num_generated_tokens == 1


def test_a_stop_token_as_the_last_allowed_token_is_a_stop() -> None:
    machine = scheduler()
    machine.add(request("a", 3, 2, stop_token_ids=frozenset({900}), min_tokens=2), 0.0)
    (end,) = of(run(machine), Finished)
    assert end.reason == "stop"


# Refusals


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "param", "says"),
    [(0, 4, "prompt", "at least one"), (5, 0, "max_tokens", "at least 1"), (200, 4, "prompt", "200")],
)
def test_what_can_never_run_is_refused(prompt: int, max_tokens: int, param: str, says: str) -> None:
    machine = scheduler()
    with pytest.raises(RequestRejected, match=says) as caught:
        machine.add(request("a", prompt, max_tokens), 0.0)
    assert caught.value.param == param
    assert not machine.has_work()


def test_a_prompt_larger_than_the_pool_is_refused_with_the_limit() -> None:
    machine = scheduler(num_blocks=3)
    with pytest.raises(RequestRejected, match="3 blocks of 4 tokens hold 12 positions"):
        machine.add(request("a", 13), 0.0)
    machine.add(request("b", 12, 5), 0.0)
    assert of(run(machine), Finished)[0].num_generated_tokens == 1


def test_ids_are_unique_among_the_living() -> None:
    machine = scheduler()
    machine.add(request("a", 3, 1), 0.0)
    with pytest.raises(RequestRejected, match="already under way") as caught:
        machine.add(request("a", 3, 1), 0.0)
    assert caught.value.param == "id"
    run(machine)
    machine.add(request("a", 3, 1), 0.0)
    run(machine)


def test_impossible_configurations_are_named() -> None:
    with pytest.raises(ValueError, match="block_size"):
        SchedulerConfig(0, 4)
    with pytest.raises(ValueError, match="max_model_len"):
        SchedulerConfig(4, 4, max_model_len=1)
    with pytest.raises(ValueError, match="window"):
        CacheGroup(0)
    with pytest.raises(ValueError, match="groups"):
        Scheduler(SchedulerConfig(4, 4), groups=())


def test_results_are_applied_in_order_and_once() -> None:
    machine = scheduler()
    machine.add(request("a", 3, 5), 0.0)
    first = machine.plan(0.0)
    second = machine.plan(0.0)
    assert first is not None and second is not None
    with pytest.raises(IllegalMove, match="in flight"):
        machine.plan(0.0)
    with pytest.raises(IllegalMove, match="oldest"):
        machine.apply(second, result(second), 0.0)
    with pytest.raises(IllegalMove, match="oldest"):
        machine.apply(first, result(second), 0.0)
    machine.apply(first, result(first), 0.0)
    with pytest.raises(IllegalMove, match="oldest"):
        machine.apply(first, result(first), 0.0)


# Abort and fault


def test_abort_of_a_waiting_request() -> None:
    machine = scheduler(max_num_seqs=1)
    for name in "ab":
        machine.add(request(name, 3, 3, first=ord(name)), 0.0)
    step(machine)
    (end,) = machine.abort("b", 0.0)
    assert isinstance(end, Finished) and end.reason == "abort"
    assert machine.abort("b", 0.0) == [] and machine.abort("nobody", 0.0) == []
    assert {event.request_id for event in run(machine) if isinstance(event, Finished)} == {"a"}


def test_abort_gives_blocks_back_at_once_and_names_the_released() -> None:
    machine = scheduler(caching=False)
    machine.add(request("a", 30, 9), 0.0)
    machine.add(request("b", 3, 9, first=100), 0.0)
    step(machine)
    machine.abort("a", 0.0, "stop")
    assert machine.stats().num_held_blocks == 1
    plan, _ = step(machine)
    assert plan.released == ("a",) and set(spans(plan)) == {"b"}


def test_abort_in_flight_keeps_the_blocks_until_the_plan_is_applied() -> None:
    machine = scheduler(caching=False)
    machine.add(request("a", 8, 9), 0.0)
    plan = machine.plan(0.0)
    assert plan is not None
    events = machine.abort("a", 0.0)
    assert [type(event) for event in events] == [Admitted, Finished]
    assert machine.stats().num_held_blocks == 2
    assert machine.plan(0.0) is None
    rest = machine.apply(plan, result(plan), 0.0)
    assert [type(event) for event in rest] == [StepCompleted]
    assert machine.stats().num_held_blocks == 0 and not machine.has_work()


def test_a_namesake_of_a_departing_request_waits_until_it_is_gone() -> None:
    machine = scheduler()
    machine.add(request("a", 8, 9), 0.0)
    old = machine.plan(0.0)
    assert old is not None
    machine.abort("a", 0.0)
    machine.add(request("a", 3, 1, first=70), 0.0)
    assert machine.plan(0.0) is None
    machine.apply(old, result(old), 0.0)
    plan, events = step(machine)
    assert plan.released == ("a",) and spans(plan) == {"a": (0, 3, 1)}
    assert of(events, Finished)[0].num_prompt_tokens == 3


def test_a_fault_finishes_the_requests_of_its_plan_and_no_others() -> None:
    machine = scheduler(max_num_seqs=2)
    for i, name in enumerate("abc"):
        machine.add(request(name, 5, 3, first=100 * i), 0.0)
    plan = machine.plan(0.0)
    assert plan is not None
    events = machine.apply(plan, result(plan, error="out of luck"), 0.0)
    assert [(e.request_id, e.reason, e.error) for e in of(events, Finished)] == [
        ("a", "error", "out of luck"),
        ("b", "error", "out of luck"),
    ]
    assert of(events, StepCompleted)[0].error == "out of luck"
    assert machine.stats().num_held_blocks == 0 and machine.stats().num_cached_blocks == 0
    assert [event.reason for event in of(run(machine), Finished)] == ["length"]


def failed_row(plan: StepPlan, error: str = "not finite") -> StepResult:
    """Every row that should have sampled failed by itself."""
    errors = tuple(error if row.num_samples else None for row in plan.rows)
    return StepResult(plan.step, tuple(() for _ in plan.rows), 0.01, row_errors=errors)


def test_a_failed_row_leaves_nothing_in_the_prefix_cache() -> None:
    machine = scheduler()
    machine.add(request("a", 9), 0.0)
    plan = machine.plan(0.0)
    assert plan is not None
    (end,) = of(machine.apply(plan, failed_row(plan), 0.0), Finished)
    assert (end.reason, end.error) == ("error", "not finite")
    assert machine.stats().num_cached_blocks == 0
    assert not block_complaints(machine)


def test_a_failed_row_in_flight_ends_the_preempted_too() -> None:
    machine = scheduler()
    machine.add(request("a", 4, max_tokens=9), 0.0)
    step(machine)
    first, second = machine.plan(0.0), machine.plan(0.0)
    assert first is not None and second is not None
    assert machine.preempt("a", 0.0)
    (end,) = of(machine.apply(first, failed_row(first), 0.0), Finished)
    assert (end.reason, end.error, end.num_generated_tokens) == ("error", "not finite", 1)
    assert not of(machine.apply(second, result(second), 0.0), TokensGenerated)
    assert not machine.has_work() and not block_complaints(machine)


def test_a_short_answer_is_a_fault_of_the_executor() -> None:
    machine = scheduler()
    machine.add(request("a", 5), 0.0)
    plan = machine.plan(0.0)
    assert plan is not None
    events = machine.apply(plan, StepResult(plan.step, (), 0.0), 0.0)
    assert of(events, Finished)[0].reason == "error"
    machine.add(request("a", 5), 0.0)
    plan = machine.plan(0.0)
    assert plan is not None
    events = machine.apply(plan, StepResult(plan.step, ((),), 0.0), 0.0)
    assert "sampled 0 tokens" in of(events, Finished)[0].error
    assert not machine.has_work() and not block_complaints(machine)


# Overlap


def test_overlapped_rows_stand_on_tokens_in_flight() -> None:
    machine = scheduler()
    machine.add(request("a", 6, 3), 0.0)
    plans = [machine.plan(0.0), machine.plan(0.0)]
    assert [spans(plan)["a"] for plan in plans if plan] == [(0, 6, 1), (6, 1, 1)]
    assert plans[0] is not None
    machine.apply(plans[0], result(plans[0]), 0.0)
    third = machine.plan(0.0)
    assert third is not None and spans(third)["a"] == (7, 1, 1)
    assert plans[1] is not None
    machine.apply(plans[1], result(plans[1]), 0.0)
    assert machine.plan(0.0) is None  # its last token is in flight
    events = machine.apply(third, result(third), 0.0)
    assert of(events, Finished)[0].num_generated_tokens == 3


def test_the_row_after_a_stop_is_dropped() -> None:
    machine = scheduler(caching=False)
    machine.add(request("a", 6, 9, stop_token_ids=frozenset({7})), 0.0)
    first, second = machine.plan(0.0), machine.plan(0.0)
    assert first is not None and second is not None
    assert of(machine.apply(first, result(first, 7), 0.0), Finished)[0].num_generated_tokens == 1
    assert machine.stats().num_held_blocks == 2
    assert [type(event) for event in machine.apply(second, result(second, 8), 0.0)] == [StepCompleted]
    assert machine.stats().num_held_blocks == 0


def test_preempted_in_flight_keeps_its_token_and_its_blocks_until_applied() -> None:
    machine = scheduler(caching=False)
    machine.add(request("a", 8, 5), 0.0)
    plan = machine.plan(0.0)
    assert plan is not None
    assert machine.preempt("a", 0.0)
    assert machine.plan(0.0) is None
    assert machine.stats().num_held_blocks == 2
    events = machine.apply(plan, result(plan, 901), 0.0)
    assert of(events, TokensGenerated)[0].tokens == (901,)
    assert machine.stats().num_held_blocks == 0
    plan, events = step(machine)
    assert plan.released == ("a",) and plan.admitted[0].generated == (901,)
    assert spans(plan) == {"a": (0, 9, 1)}
    assert [type(event) for event in events[:2]] == [Preempted, Admitted]
    assert not machine.preempt("nobody", 0.0)


def test_a_fault_in_flight_takes_the_preempted_too() -> None:
    machine = scheduler()
    machine.add(request("a", 8, 5), 0.0)
    plan = machine.plan(0.0)
    assert plan is not None
    machine.preempt("a", 0.0)
    events = machine.apply(plan, result(plan, error="no"), 0.0)
    assert [type(event) for event in events] == [Admitted, Preempted, Finished, StepCompleted]
    assert not machine.has_work() and machine.stats().num_held_blocks == 0


# Preemption


def test_a_pool_too_small_for_two_serves_both_by_preempting_the_later() -> None:
    machine = scheduler(num_blocks=6, caching=False)
    for i, name in enumerate("ab"):
        machine.add(request(name, 8, 12, first=100 * i), 0.0)
    events = run(machine)
    ends = {event.request_id: event for event in of(events, Finished)}
    assert ends["a"].num_preemptions == 0 and ends["b"].num_preemptions >= 1
    assert ends["a"].num_generated_tokens == ends["b"].num_generated_tokens == 12
    assert [event.resumed for event in of(events, Admitted)] == [False, False, True]


def test_a_resumed_request_finds_its_own_prefix() -> None:
    machine = scheduler(num_blocks=32)
    machine.add(request("a", 10, 9), 0.0)
    for _ in range(4):
        step(machine)
    machine.preempt("a", 0.0)
    plan, events = step(machine)
    assert spans(plan) == {"a": (12, 2, 1)}
    admitted = of(events, Admitted)[0]
    assert (admitted.num_cached_tokens, admitted.resumed) == (12, True)
    end = of(run(machine), Finished)[0]
    assert (end.num_cached_tokens, end.num_generated_tokens, end.num_preemptions) == (0, 9, 1)


def test_the_preempted_goes_ahead_of_those_that_wait() -> None:
    machine = scheduler(max_num_seqs=1)
    for i, name in enumerate("ab"):
        machine.add(request(name, 4, 3, first=100 * i), 0.0)
    step(machine)
    machine.preempt("a", 0.0)
    assert set(spans(step(machine)[0])) == {"a"}


def test_blocks_short_admit_nobody() -> None:
    machine = scheduler(num_blocks=5, caching=False)
    machine.add(request("a", 12, 8), 0.0)
    machine.add(request("b", 12, 8, first=100), 0.0)
    plan, _ = step(machine)
    assert set(spans(plan)) == {"a"}
    assert len(of(run(machine), Finished)) == 2
    assert machine.stats().num_preemptions == 0


def test_one_victim_at_a_time_while_its_blocks_are_in_flight() -> None:
    machine = scheduler(num_blocks=3, caching=False)
    for i, name in enumerate("abc"):
        machine.add(request(name, 4, 3, first=100 * i), 0.0)
    plan = machine.plan(0.0)
    assert plan is not None and set(spans(plan)) == {"a", "b", "c"}
    assert machine.plan(0.0) is None  # a waits for the block of c rather than preempting b as well
    assert machine.stats().num_preemptions == 1
    machine.apply(plan, result(plan), 0.0)
    assert set(spans(step(machine)[0])) == {"a"}


# Priority


def test_priority_orders_the_waiting() -> None:
    machine = scheduler(max_num_seqs=1, policy=PRIORITY)
    for i, (name, priority) in enumerate([("low", 5), ("high", 0), ("middle", 3), ("high2", 0)]):
        machine.add(request(name, 3, 2, first=100 * i, priority=priority), 0.0)
    ends = [event.request_id for event in of(run(machine), Finished)]
    assert ends == ["high", "high2", "middle", "low"]


def test_no_priority_inversion_for_a_seat() -> None:
    machine = scheduler(max_num_seqs=1, policy=PRIORITY)
    machine.add(request("low", 6, 9, priority=5), 0.0)
    step(machine)
    machine.add(request("high", 6, 2, first=50, priority=0), 0.0)
    plan, events = step(machine)
    assert set(spans(plan)) == {"high"} and plan.released == ("low",)
    assert of(events, Preempted)[0].request_id == "low"
    assert [event.request_id for event in of(run(machine), Finished)] == ["high", "low"]


def test_no_priority_inversion_for_blocks_and_none_among_equals() -> None:
    machine = scheduler(num_blocks=5, policy=PRIORITY, caching=False)
    machine.add(request("low", 12, 8, priority=5), 0.0)
    step(machine)
    machine.add(request("equal", 12, 8, first=50, priority=5), 0.0)
    assert set(spans(step(machine)[0])) == {"low"}
    machine.add(request("high", 12, 2, first=90, priority=1), 0.0)
    assert set(spans(step(machine)[0])) == {"high"}
    assert [event.request_id for event in of(run(machine), Finished)] == ["high", "low", "equal"]


def test_the_least_urgent_is_the_victim() -> None:
    machine = scheduler(num_blocks=6, policy=PRIORITY, caching=False)
    machine.add(request("low", 8, 12, priority=5), 0.0)
    machine.add(request("high", 8, 12, first=100, priority=0), 0.0)
    ends = {event.request_id: event for event in of(run(machine), Finished)}
    assert ends["high"].num_preemptions == 0 and ends["low"].num_preemptions >= 1


# Prefix cache


def test_the_last_prompt_token_is_always_computed() -> None:
    machine = scheduler()
    machine.add(request("a", 8, 1), 0.0)
    run(machine)
    machine.add(request("b", 8, 1), 0.0)
    plan, events = step(machine)
    assert spans(plan) == {"b": (4, 4, 1)}
    assert of(events, Finished)[0].num_cached_tokens == 4
    assert of(events, PromptComputed) == [PromptComputed(0.0, "b", 4, 4)]


def test_many_with_one_prefix_compute_it_once() -> None:
    machine = scheduler(budget=1000, num_blocks=40)
    for i in range(8):
        machine.add(request(f"r{i}", 33, 3), 0.0)
    first, _ = step(machine)
    assert spans(first) == {"r0": (0, 33, 1)}
    second, _ = step(machine)
    assert {span for name, span in spans(second).items() if name != "r0"} == {(32, 1, 1)}
    assert machine.stats().num_held_blocks == 8 + 8
    assert len(of(run(machine), Finished)) == 8


def test_salt_separates_and_skip_recomputes() -> None:
    machine = scheduler()
    machine.add(request("a", 12, 1), 0.0)
    run(machine)
    machine.add(request("salted", 12, 1, cache_salt=b"tenant"), 0.0)
    machine.add(request("skips", 12, 1, skip_prefix_cache=True), 0.0)
    machine.add(request("hits", 12, 1), 0.0)
    assert spans(step(machine)[0]) == {"salted": (0, 12, 1), "skips": (0, 12, 1), "hits": (8, 4, 1)}


def test_without_caching_nothing_is_kept() -> None:
    machine = scheduler(caching=False)
    machine.add(request("a", 12, 1), 0.0)
    run(machine)
    assert machine.stats().num_cached_blocks == 0
    machine.add(request("b", 12, 1), 0.0)
    assert spans(step(machine)[0]) == {"b": (0, 12, 1)}


def test_a_longer_answer_is_reused_by_the_next_turn() -> None:
    machine = scheduler()
    machine.add(request("a", 6, 7), 0.0)
    run(machine)
    turn = Request("b", (*range(6), *(900,) * 7, 1, 2), 1)
    machine.add(turn, 0.0)
    assert spans(step(machine)[0]) == {"b": (12, 3, 1)}


def test_cached_blocks_are_evicted_oldest_first_and_the_prefix_outlives_its_end() -> None:
    machine = scheduler(num_blocks=6)
    machine.add(request("a", 16, 1), 0.0)
    run(machine)
    assert machine.stats().num_cached_blocks == 4
    machine.add(request("b", 14, 1, first=100), 0.0)
    run(machine)  # takes 2 free blocks and the 2 deepest of a
    machine.add(request("c", 16, 1), 0.0)
    assert spans(step(machine)[0]) == {"c": (8, 8, 1)}


def test_blocks_in_flight_are_not_published() -> None:
    machine = scheduler()
    machine.add(request("a", 7, 9), 0.0)
    first, second = machine.plan(0.0), machine.plan(0.0)
    assert first is not None and second is not None  # the second fills the block of positions 4..7
    machine.apply(first, result(first), 0.0)
    machine.apply(second, result(second, error="the block holds nonsense"), 0.0)
    assert machine.stats().num_cached_blocks == 1
    machine.add(Request("b", (*range(7), 900, 1), 1), 0.0)
    assert spans(step(machine)[0]) == {"b": (4, 5, 1)}


# Windows


def test_window_groups_let_go_what_slid_out() -> None:
    machine = scheduler(groups=(CacheGroup(), CacheGroup(4)), caching=False)
    machine.add(request("a", 4, 30), 0.0)
    for _ in range(20):
        plan, _ = step(machine)
        assert not block_complaints(machine)
    full, window = plan.rows[0].blocks
    assert len(full) == len(window) == 6 and NO_BLOCK not in full
    assert window[:3] == (NO_BLOCK,) * 3 and NO_BLOCK not in window[4:]


def test_a_hit_needs_only_the_window_in_window_groups() -> None:
    machine = scheduler(groups=(CacheGroup(), CacheGroup(4)), num_blocks=64)
    machine.add(request("a", 24, 1), 0.0)
    run(machine)
    machine.add(request("b", 24, 1), 0.0)
    plan, _ = step(machine)
    assert spans(plan) == {"b": (20, 4, 1)}
    assert plan.rows[0].blocks[1][:4] == (NO_BLOCK,) * 4
    run(machine)


def test_window_blocks_stay_cached_after_they_slid_out() -> None:
    machine = scheduler(groups=(CacheGroup(4),), num_blocks=8, budget=4)
    machine.add(request("a", 24, 1), 0.0)
    events = run(machine)
    assert of(events, Finished)
    machine.add(request("b", 24, 1), 0.0)
    assert step(machine)[0].rows[0].start == 20
    machine.add(request("shorter", 9, 1), 0.0)
    assert spans(step(machine)[0])["shorter"] == (8, 1, 1)


def test_a_window_model_runs_contexts_larger_than_the_pool() -> None:
    machine = scheduler(groups=(CacheGroup(4),), num_blocks=4, budget=64)
    machine.add(request("a", 60, 20), 0.0)  # 20 blocks' worth, wide chunks do not fit: it begins with less
    (end,) = of(run(machine), Finished)
    assert end.num_generated_tokens == 20
