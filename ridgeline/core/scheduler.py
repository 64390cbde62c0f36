"""The scheduler: a pure state machine from requests to plans, and from results to events.

No clock, no I/O, no randomness, no tensors. Time comes in as `now` and only goes out again in events.

    add(request) -> waiting --plan--> running --apply--> ... -> Finished
                       ^                 |
                       +---- preempt ----+         (finish and re-add: the id and the rank are kept)

The plan of step n+1 may be made before the result of step n is applied (overlap). Then a row may stand on a
token that is sampled but not yet known: plans speak in positions, so they need not care. What a finished or
preempted request holds is given back only when no plan in flight has a row of it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import NamedTuple

from ridgeline.core.config import CacheGroup, IllegalMove, RequestRejected, SchedulerConfig
from ridgeline.core.event import (
    Admitted,
    Arrived,
    Event,
    Finished,
    FinishReason,
    Preempted,
    PromptComputed,
    StepCompleted,
    TokensGenerated,
)
from ridgeline.core.paging import Hit, Paging
from ridgeline.core.plan import Admission, Row, StepPlan, StepResult
from ridgeline.core.policy import FCFS, Policy, Rank
from ridgeline.core.prefix_index import root_name
from ridgeline.core.request import Request
from ridgeline.core.sequence import Move, Sequence, Status

MAX_PLANS_IN_FLIGHT = 2

_new = (
    tuple.__new__
)  # builds a NamedTuple without its Python-level constructor: half the time, and there are many


class SchedulerStats(NamedTuple):
    """Gauges and running totals. `num_free + num_cached + num_held == num_blocks`, always."""

    num_waiting: int
    num_running: int
    num_free_blocks: int
    num_cached_blocks: int
    num_held_blocks: int
    num_blocks: int
    num_preemptions: int
    num_prefix_tokens_asked: int
    num_prefix_tokens_hit: int


class _Flight(NamedTuple):
    plan: StepPlan
    sequences: list[Sequence]
    events: list[Event]
    num_prefill_tokens: int


class Scheduler:
    """Decides what every step computes.

    Args:
        config: limits.
        groups: one `CacheGroup` per block table of a sequence.
        policy: who goes first, who yields.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        groups: tuple[CacheGroup, ...] = (CacheGroup(),),
        policy: Policy = FCFS,
    ) -> None:
        if not groups:
            raise ValueError("groups: at least one cache group is needed")
        self.config = config
        self.groups = groups
        self.policy = policy
        self._paging = Paging(config, groups)
        # The last generated token is never computed, so a context of n tokens needs n - 1 positions.
        self._pool_limit = self._paging.capacity_tokens(config.max_model_len - 1) + 1
        self._sequences: dict[str, Sequence] = {}
        self._waiting: list[Sequence] = []  # by rank
        self._running: list[Sequence] = []  # by rank
        self._departing: dict[str, Sequence] = {}  # finished or preempted, with a row still in flight
        self._released: list[str] = []
        self._flights: deque[_Flight] = deque()
        self._events: list[Event] = []  # of the plan being made
        self._num_arrived = self._step = 0
        self._num_preemptions = self._num_asked = self._num_hit = 0

    # What callers may know ------------------------------------------------------------------------

    @property
    def context_limit(self) -> int:
        """Most tokens of one request, prompt and generated: `max_model_len`, or what the pool holds."""
        return min(self.config.max_model_len, self._pool_limit)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def has_work(self) -> bool:
        """Whether a call of `plan` or `apply` is still to come."""
        return bool(self._waiting or self._running or self._flights)

    def stats(self) -> SchedulerStats:
        """The gauges of this moment; counts all blocks, so not for every step."""
        pool = self._paging.pool
        return SchedulerStats(
            len(self._waiting),
            len(self._running),
            pool.num_free,
            pool.num_cached,
            pool.num_held,
            pool.num_blocks,
            self._num_preemptions,
            self._num_asked,
            self._num_hit,
        )

    def block_tables(self) -> list[tuple[tuple[int, ...], ...]]:
        """Tables of every request that holds blocks, per cache group, for checks and explanations."""
        return [sequence.blocks for sequence in (*self._running, *self._departing.values())]

    def block_references(self) -> tuple[int, ...]:
        """How many requests hold each block, `[num_blocks]`."""
        return self._paging.pool.references()

    # Requests come and go -------------------------------------------------------------------------

    def add(self, request: Request, now: float) -> list[Event]:
        """Queue a request.

        Raises:
            RequestRejected: it could never run; nothing has changed.
        """
        self._check(request)
        arrival = self._num_arrived
        self._num_arrived += 1
        limit = min(self.context_limit, len(request.prompt) + request.max_tokens)
        sequence = Sequence(request, arrival, limit, root_name(request.cache_salt), len(self.groups))
        sequence.rank = self.policy.rank(request, arrival)
        self._sequences[request.id] = sequence
        insort(self._waiting, sequence, key=_rank)
        return [Arrived(now, request.id, sequence.num_prompt)]

    def _check(self, request: Request) -> None:
        if request.id in self._sequences:
            raise RequestRejected("id", f"request {request.id!r} is already under way")
        num_prompt = len(request.prompt)
        if num_prompt < 1:
            raise RequestRejected("prompt", "must have at least one token")
        if request.max_tokens < 1:
            raise RequestRejected("max_tokens", f"must be at least 1, got {request.max_tokens}")
        if num_prompt >= self.config.max_model_len:
            limit = self.config.max_model_len
            raise RequestRejected(
                "prompt",
                f"{num_prompt} tokens leave no room to generate: the context limit is {limit} tokens",
            )
        if num_prompt >= self._pool_limit:
            size = self.config.num_blocks
            raise RequestRejected(
                "prompt",
                f"{num_prompt} tokens never fit into the KV cache: its {size} blocks of "
                f"{self.config.block_size} tokens hold {self._pool_limit - 1} positions of one request",
            )

    def abort(self, request_id: str, now: float, reason: FinishReason = "abort") -> list[Event]:
        """Finish a request from outside, at once. An unknown or finished id gives no events."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return []
        events: list[Event] = []
        self._finish(sequence, reason, now, events)
        return events

    def preempt(self, request_id: str, now: float) -> bool:
        """Make a running request give up its blocks and wait again, as running out of blocks would.

        Its event is among those of the next plan. False when no such request runs.
        """
        sequence = self._sequences.get(request_id)
        if sequence is None or sequence.status is not Status.RUNNING:
            return False
        self._preempt(sequence, now)
        return True

    # Planning -------------------------------------------------------------------------------------

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None when nothing can be computed (now, or before a plan in flight is applied).

        Raises:
            IllegalMove: two plans are in flight already.
        """
        if len(self._flights) >= MAX_PLANS_IN_FLIGHT:
            raise IllegalMove(f"{MAX_PLANS_IN_FLIGHT} plans are in flight: apply the oldest first")
        rows: list[Row] = []
        planned: list[Sequence] = []
        admitted: list[Admission] = []
        if self._waiting and self._running:
            self._make_way(now)
        budget, num_decodes, short = self._plan_running(rows, planned, now)
        if self._waiting and not short:
            budget = self._admit_waiting(rows, planned, admitted, budget, now)
        if not rows:
            return None
        num_tokens = self.config.max_num_batched_tokens - budget
        plan = StepPlan(self._step, tuple(rows), tuple(admitted), tuple(self._released), num_tokens)
        self._step += 1
        self._released = []
        self._flights.append(_Flight(plan, planned, self._events, num_tokens - num_decodes))
        self._events = []
        return plan

    def _plan_running(self, rows: list[Row], planned: list[Sequence], now: float) -> tuple[int, int, bool]:
        """Rows of the running, by rank. Each is promised one token of the budget; what is over goes by rank.

        Returns the budget left, the number of decode rows, and whether somebody lacked blocks.
        """
        budget = self.config.max_num_batched_tokens
        surplus = max(0, budget - len(self._running))
        num_decodes, short = 0, False
        add_row, add_planned, new = rows.append, planned.append, _new
        for sequence in self._running:  # preemption removes only this element or later ones
            known = sequence.known
            if known >= sequence.max_len:  # its last token is in flight
                surplus += 1
                continue
            if not budget:
                break
            start = sequence.computed
            end = start + 1
            if known > end:
                extra = min(known - end, surplus, budget - 1)
                end += extra
                surplus -= extra
            if end > sequence.room:
                end = self._make_room(sequence, end, now)
                if not end:
                    short = True
                    continue
            num_samples = 0
            if end == known:
                num_samples = 1
                sequence.known = known + 1
                if start >= sequence.num_prompt and end - start == 1:
                    num_decodes += 1
            sequence.computed = end
            count = end - start
            budget -= count
            add_row(new(Row, (sequence.id, start, count, sequence.blocks, num_samples)))
            add_planned(sequence)
        return budget, num_decodes, short

    def _make_room(self, sequence: Sequence, end: int, now: float) -> int:
        """Get blocks for `end` positions, preempting if need be.

        Returns the end that there is room for: less for one alone in the pool, 0 for none in this step.
        """
        while not self._paging.grow(sequence, end):
            if self._departing:
                return 0  # blocks come back when the plan in flight is applied
            if len(self._running) == 1:
                return self._shrunk(sequence, end)
            candidates = self._running[self._running.index(sequence) :]
            victim = self.policy.victim(candidates)
            assert isinstance(victim, Sequence)
            self._preempt(victim, now)
            if victim is sequence:
                return 0
        return end

    def _shrunk(self, sequence: Sequence, end: int) -> int:
        """A smaller end that fits: wide chunks need more of a window group than its window."""
        while end - sequence.computed > 1:
            end = sequence.computed + (end - sequence.computed) // 2
            if self._paging.grow(sequence, end):
                return end
        if not sequence.in_flight:
            raise IllegalMove(f"request {sequence.id!r} has the pool to itself and does not fit")
        return 0

    def _make_way(self, now: float) -> None:
        """Preempt those that the policy lets yield, until the first of the waiting could be admitted."""
        head = self._waiting[0]
        while self._running and not self._departing:
            victim = self.policy.victim(self._running)
            assert isinstance(victim, Sequence)
            if not self.policy.yields(victim, head) or self._could_admit(head):
                return
            self._preempt(victim, now)

    def _could_admit(self, sequence: Sequence) -> bool:
        hit = self._paging.match(sequence)
        end = min(sequence.known, hit.length + self.config.max_num_batched_tokens)
        fits = self._paging.cost(hit, end, sequence.known) <= self._paging.pool.num_available
        return fits and len(self._running) < self.config.max_num_seqs

    def _admit_waiting(
        self, rows: list[Row], planned: list[Sequence], admitted: list[Admission], budget: int, now: float
    ) -> int:
        """Admit by rank while seats, budget and blocks last; nobody overtakes. Returns the budget left."""
        while self._waiting and budget > 0 and len(self._running) < self.config.max_num_seqs:
            sequence = self._waiting[0]
            if sequence.id in self._departing:
                break  # itself, or a namesake, still has a row in flight
            hit = self._paging.match(sequence)
            if self._paging.is_being_computed(sequence, hit, self._running):
                break  # one step later it will be a hit
            end = self._fitting_end(sequence, hit, budget)
            if not end:
                break
            del self._waiting[0]
            admitted.append(self._admit(sequence, hit, now))
            self._paging.grow(sequence, end)
            num_samples = int(end == sequence.known)
            sequence.known += num_samples
            sequence.computed = end
            budget -= end - hit.length
            rows.append(Row(sequence.id, hit.length, end - hit.length, sequence.blocks, num_samples))
            planned.append(sequence)
        return budget

    def _fitting_end(self, sequence: Sequence, hit: Hit, budget: int) -> int:
        """Where its first chunk ends; 0 when blocks are short. One alone may begin with a smaller chunk."""
        available = self._paging.pool.num_available
        count = min(sequence.known - hit.length, budget)
        while count and self._paging.cost(hit, hit.length + count, sequence.known) > available:
            count = 0 if self._running or self._departing else count // 2
        return hit.length + count if count else 0

    def _admit(self, sequence: Sequence, hit: Hit, now: float) -> Admission:
        resumed = sequence.status is Status.PREEMPTED
        sequence.move(Move.ADMIT)
        insort(self._running, sequence, key=_rank)
        self._paging.adopt(sequence, hit)
        if not resumed:
            sequence.num_cached = hit.length
        if self.config.enable_prefix_caching:
            self._num_asked += sequence.known
            self._num_hit += hit.length
        self._events.append(Admitted(now, sequence.id, hit.length, resumed))
        return Admission(sequence.request, tuple(sequence.tokens[sequence.num_prompt :]))

    # Applying -------------------------------------------------------------------------------------

    def apply(self, plan: StepPlan, result: StepResult, now: float) -> list[Event]:
        """Absorb the result of the oldest plan in flight.

        A result with `error` finishes every request of the plan with reason `error`.

        Raises:
            IllegalMove: this plan is not the oldest in flight, or the result is of another step.
        """
        if not self._flights or self._flights[0].plan is not plan or result.step != plan.step:
            raise IllegalMove(f"step {plan.step} (result of step {result.step}) is not the oldest in flight")
        flight = self._flights.popleft()
        events = flight.events
        error = result.error
        if error is None and len(result.tokens) != len(plan.rows):
            error = f"the executor answered {len(result.tokens)} of {len(plan.rows)} rows"
        if error is None:
            self._apply_rows(flight, result, now, events)
        else:
            self._apply_fault(flight, error, now, events)
        pool = self._paging.pool
        events.append(
            StepCompleted(
                now, plan.step, result.seconds, len(plan.rows), plan.num_tokens,
                flight.num_prefill_tokens, len(self._running), len(self._waiting),
                pool.num_free, pool.num_cached, pool.num_blocks, error,
            )
        )  # fmt: skip
        return events

    def _apply_rows(self, flight: _Flight, result: StepResult, now: float, events: list[Event]) -> None:
        rows = flight.plan.rows
        payloads = result.logprobs if result.logprobs is not None else (None,) * len(rows)
        add_event, new, running = events.append, _new, Status.RUNNING
        for row, sequence, sampled, payload in zip(
            rows, flight.sequences, result.tokens, payloads, strict=True
        ):
            _, start, count, _, num_samples = row
            sequence.settled = end = start + count
            if sequence.status is not running:
                self._apply_departing(sequence, flight.plan, row, result, now, events)
                continue
            if len(sampled) != num_samples:
                self._finish(sequence, "error", now, events, error=_row_error(flight.plan, row, result))
                continue  # nothing of it is published: its keys and values may be what is broken
            if end >= sequence.publish_at:
                self._paging.publish(sequence)
            num_prompt = sequence.num_prompt
            if start < num_prompt:
                add_event(PromptComputed(now, sequence.id, start, min(end, num_prompt) - start, payload))
            if num_samples:
                token = sampled[0]
                tokens = sequence.tokens
                add_event(
                    new(TokensGenerated, (now, sequence.id, sampled, len(tokens) == num_prompt, payload))
                )
                tokens.append(token)
                if token in sequence.stops or len(tokens) >= sequence.max_len:
                    self._finish_if_done(sequence, token, now, events)

    def _apply_departing(
        self,
        sequence: Sequence,
        plan: StepPlan,
        row: Row,
        result: StepResult,
        now: float,
        events: list[Event],
    ) -> None:
        """A row of a request that finished or was preempted meanwhile; only the latter wants its result."""
        index = plan.rows.index(row)
        sampled, payload = result.tokens[index], result.logprobs[index] if result.logprobs else None
        preempted = sequence.status is Status.PREEMPTED
        if preempted and len(sampled) != row.num_samples:
            self._finish(sequence, "error", now, events, error=_row_error(plan, row, result))
        elif preempted:
            if sequence.settled >= sequence.publish_at:
                self._paging.publish(sequence)
            if row.start < sequence.num_prompt:
                count = min(sequence.settled, sequence.num_prompt) - row.start
                events.append(PromptComputed(now, sequence.id, row.start, count, payload))
            if row.num_samples:
                first = len(sequence.tokens) == sequence.num_prompt
                events.append(TokensGenerated(now, sequence.id, sampled, first, payload))
                sequence.tokens.append(sampled[0])
                self._finish_if_done(sequence, sampled[0], now, events)
        self._depart_if_settled(sequence)

    def _apply_fault(self, flight: _Flight, error: str, now: float, events: list[Event]) -> None:
        for row, sequence in zip(flight.plan.rows, flight.sequences, strict=True):
            sequence.settled = row.start + row.count
            was_running = sequence.status is Status.RUNNING
            if sequence.status is not Status.FINISHED:
                self._finish(sequence, "error", now, events, error=error)
            if not was_running:
                self._depart_if_settled(sequence)

    def _finish_if_done(self, sequence: Sequence, token: int, now: float, events: list[Event]) -> None:
        if token in sequence.stops and len(sequence.tokens) >= sequence.min_len:
            self._finish(sequence, "stop", now, events, stop_token_id=token)
        elif len(sequence.tokens) >= sequence.max_len:
            self._finish(sequence, "length", now, events)

    # Leaving the running set ----------------------------------------------------------------------

    def _preempt(self, sequence: Sequence, now: float) -> None:
        sequence.move(Move.PREEMPT)
        _remove(self._running, sequence)
        insort(self._waiting, sequence, key=_rank)
        sequence.num_preemptions += 1
        self._num_preemptions += 1
        self._events.append(Preempted(now, sequence.id, sequence.computed))
        self._leave(sequence)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        events: list[Event],
        stop_token_id: int | None = None,
        error: str | None = None,
    ) -> None:
        was_running = sequence.status is Status.RUNNING
        sequence.move(Move.FINISH)
        del self._sequences[sequence.id]
        _remove(self._running if was_running else self._waiting, sequence)
        if was_running:
            self._leave(sequence)
        events.extend(self._take_events(sequence.id))
        events.append(
            Finished(
                now, sequence.id, reason, sequence.num_prompt, sequence.num_generated, sequence.num_cached,
                sequence.num_preemptions, stop_token_id, error,
            )
        )  # fmt: skip

    def _take_events(self, request_id: str) -> list[Event]:
        """Events of a finishing request that plans in flight still hold: nothing may follow its last."""
        taken: list[Event] = []
        for pending in (*(flight.events for flight in self._flights), self._events):
            mine = [event for event in pending if getattr(event, "request_id", None) == request_id]
            if mine:
                taken += mine
                pending[:] = [event for event in pending if event not in mine]
        return taken

    def _leave(self, sequence: Sequence) -> None:
        if sequence.in_flight:
            self._departing[sequence.id] = sequence
        else:
            self._let_go(sequence)

    def _depart_if_settled(self, sequence: Sequence) -> None:
        if not sequence.in_flight and self._departing.pop(sequence.id, None) is not None:
            self._let_go(sequence)

    def _let_go(self, sequence: Sequence) -> None:
        """Blocks and executor state go back; no plan in flight has a row of this request."""
        self._paging.release(sequence)
        self._released.append(sequence.id)
        if sequence.status is Status.PREEMPTED:
            sequence.computed = sequence.settled = 0
            sequence.known = len(sequence.tokens)


def _row_error(plan: StepPlan, row: Row, result: StepResult) -> str:
    """Why a row did not sample what it should have."""
    index = plan.rows.index(row)
    said = result.row_errors[index] if result.row_errors else None
    return said or f"the executor sampled {len(result.tokens[index])} tokens, not {row.num_samples}"


def _rank(sequence: Sequence) -> Rank:
    return sequence.rank


def _remove(ranked: list[Sequence], sequence: Sequence) -> None:
    index = bisect_left(ranked, sequence.rank, key=_rank)
    if ranked[index] is not sequence:
        raise IllegalMove(f"request {sequence.id!r} is not where its rank says")
    del ranked[index]
