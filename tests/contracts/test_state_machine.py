"""Contract 6: every request reaches exactly one terminal event, whatever is thrown at the scheduler.

Contract 2 is checked after every move, and the `ContextExecutor` checks every block that is read or written.
"""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ridgeline.core.config import CacheGroup, RequestRejected, SchedulerConfig
from ridgeline.core.event import Event, Finished, TokensGenerated
from ridgeline.core.plan import StepPlan
from ridgeline.core.policy import FCFS, PRIORITY
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler
from ridgeline.engine.engine import Engine
from ridgeline.sim.checks import block_complaints, event_complaints
from ridgeline.sim.context_executor import ContextExecutor, expected_tokens
from ridgeline.sim.virtual_clock import VirtualClock

VOCAB = 12
LAYOUTS = [
    (CacheGroup(),),
    (CacheGroup(), CacheGroup(5)),
    (CacheGroup(3),),
    (CacheGroup(), CacheGroup(4), CacheGroup(9)),
]


class SchedulerMachine(RuleBasedStateMachine):
    overlap = False

    @initialize(
        block_size=st.sampled_from([1, 2, 4]),
        num_blocks=st.integers(12, 40),
        max_num_seqs=st.integers(1, 6),
        budget=st.integers(1, 24),
        caching=st.booleans(),
        groups=st.sampled_from(LAYOUTS),
        policy=st.sampled_from([FCFS, PRIORITY]),
    )
    def begin(self, block_size, num_blocks, max_num_seqs, budget, caching, groups, policy):
        config = SchedulerConfig(block_size, num_blocks, max_num_seqs, budget, 40, caching)
        self.scheduler = Scheduler(config, groups, policy)
        self.clock = VirtualClock()
        self.fault_next = False
        executor = ContextExecutor(block_size, groups, VOCAB, self.clock, fault=self.fault)
        self.engine = Engine(self.scheduler, executor, self.clock, self.overlap)
        self.requests: dict[str, Request] = {}
        self.events: list[Event] = []

    def fault(self, plan: StepPlan) -> str | None:
        fault, self.fault_next = self.fault_next, False
        return "the machine caught fire" if fault else None

    @rule(
        family=st.integers(0, 2),
        length=st.integers(1, 24),
        tail=st.lists(st.integers(0, VOCAB - 1), max_size=3),
        max_tokens=st.integers(1, 20),
        stops=st.frozensets(st.integers(0, VOCAB - 1), max_size=2),
        min_tokens=st.integers(0, 4),
        priority=st.integers(0, 2),
        skip=st.booleans(),
    )
    def add(self, family, length, tail, max_tokens, stops, min_tokens, priority, skip):
        prompt = tuple((family * 5 + i * i) % VOCAB for i in range(length)) + tuple(tail)
        name = f"r{len(self.requests)}"
        request = Request(
            name, prompt, max_tokens, stops, min(min_tokens, max_tokens), priority, skip_prefix_cache=skip
        )
        try:
            self.events += self.engine.add(request)
            self.requests[name] = request
        except RequestRejected as rejection:
            assert rejection.param == "prompt" and len(prompt) >= self.scheduler.context_limit

    @rule(times=st.integers(1, 4))
    def step(self, times):
        for _ in range(times):
            self.events += self.engine.step()
            assert not block_complaints(self.scheduler)

    @precondition(lambda self: self.requests)
    @rule(pick=st.integers(0, 1000))
    def abort(self, pick):
        self.events += self.engine.abort(f"r{pick % len(self.requests)}")

    @precondition(lambda self: self.requests)
    @rule(pick=st.integers(0, 1000))
    def preempt(self, pick):
        self.scheduler.preempt(f"r{pick % len(self.requests)}", self.clock.now())

    @rule()
    def fail_next_step(self):
        self.fault_next = True

    @rule()
    def drain(self):
        for _ in range(5000):
            if not self.engine.has_work():
                break
            self.events += self.engine.step()
        assert not self.engine.has_work(), "no progress"
        assert not event_complaints(self.events)
        assert self.scheduler.stats().num_held_blocks == 0
        self.check_texts()

    def check_texts(self):
        generated: dict[str, tuple[int, ...]] = dict.fromkeys(self.requests, ())
        for event in self.events:
            if isinstance(event, TokensGenerated):
                assert event.first == (not generated[event.request_id])
                generated[event.request_id] += event.tokens
        for event in self.events:
            if not isinstance(event, Finished):
                continue
            request, tokens = self.requests[event.request_id], generated[event.request_id]
            assert event.num_generated_tokens == len(tokens)
            assert tokens == expected_tokens(request.prompt, len(tokens), VOCAB)
            limit = min(request.max_tokens, self.scheduler.context_limit - len(request.prompt))
            if event.reason == "length":
                assert len(tokens) == limit
            if event.reason == "stop":
                assert tokens[-1] == event.stop_token_id in request.stop_token_ids
                assert len(tokens) >= request.min_tokens
            if event.reason in ("length", "stop"):
                early = tokens[max(0, request.min_tokens - 1) : -1]
                assert not request.stop_token_ids.intersection(early), "ran past a stop token"

    @invariant()
    def books_are_right(self):
        if hasattr(self, "scheduler"):
            assert not block_complaints(self.scheduler)
            assert not event_complaints(self.events, all_finished=False)

    def teardown(self):
        if hasattr(self, "scheduler"):
            self.drain()


class OverlappedMachine(SchedulerMachine):
    overlap = True


_SETTINGS = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = _SETTINGS
TestOverlapped = OverlappedMachine.TestCase
TestOverlapped.settings = _SETTINGS
