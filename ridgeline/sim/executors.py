"""Executors without a model: one makes results up, one plays them back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hashlib import blake2b

from ridgeline.core.plan import Row, StepPlan, StepResult
from ridgeline.engine.recording import Collected, Recording
from ridgeline.sim.virtual_clock import VirtualClock

DurationFn = Callable[[StepPlan], float]
"""Seconds that a plan takes."""

TokenFn = Callable[[int, int], int]
"""The token at a position, given the hash of the prompt. It cannot depend on how the work was cut up."""

FaultFn = Callable[[StepPlan], str | None]
"""What goes wrong in a plan, or None."""


def prompt_hash(prompt: tuple[int, ...]) -> int:
    """64 bits of the prompt, the same on every machine."""
    digest = blake2b(b"".join(token.to_bytes(8, "little", signed=True) for token in prompt), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def arbitrary_tokens(vocab_size: int) -> TokenFn:
    """Tokens that look random and depend on (prompt, position) alone (the finaliser of splitmix64)."""

    def token(prompt: int, position: int) -> int:
        mixed = (prompt + position * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        return (mixed ^ (mixed >> 31)) % vocab_size

    return token


def no_fault(plan: StepPlan) -> str | None:
    """Nothing goes wrong."""
    return None


class SimulatedExecutor:
    """Takes the time that `duration` says, on a virtual clock, and answers the tokens that `token` says.

    Plans run one after the other: one submitted while another runs begins when that one ends.
    """

    def __init__(
        self,
        clock: VirtualClock,
        duration: DurationFn,
        token: TokenFn | None = None,
        fault: FaultFn = no_fault,
    ) -> None:
        self._clock = clock
        self._duration = duration
        self._token = token if token is not None else arbitrary_tokens(32_000)
        self._fault = fault
        self._prompts: dict[str, int] = {}
        self._queue: deque[tuple[float, StepResult]] = deque()
        self._busy_until = clock.now()

    def submit(self, plan: StepPlan) -> None:
        """Run a plan after those submitted before it."""
        for request_id in plan.released:
            self._prompts.pop(request_id, None)
        for admission in plan.admitted:
            self._prompts[admission.request.id] = prompt_hash(admission.request.prompt)
        seconds = self._duration(plan)
        tokens = tuple(self._sampled(row) for row in plan.rows)
        self._busy_until = max(self._busy_until, self._clock.now()) + seconds
        result = StepResult(plan.step, tokens, seconds, error=self._fault(plan))
        self._queue.append((self._busy_until, result))

    def _sampled(self, row: Row) -> tuple[int, ...]:
        end = row.start + row.count
        prompt = self._prompts[row.request_id]
        return tuple(self._token(prompt, end + i) for i in range(row.num_samples))

    def collect(self) -> StepResult:
        """The oldest result; the clock moves to the moment at which it was ready."""
        ready_s, result = self._queue.popleft()
        self._clock.advance_to(ready_s)
        return result

    def close(self) -> None:
        """Nothing to stop."""


class PlanMismatch(AssertionError):
    """A replayed scheduler made another plan than the recorded one."""


class ReplayedExecutor:
    """Answers every plan with the recorded result, at the recorded time.

    Raises:
        PlanMismatch: from `submit`, when a plan is not the recorded one.
    """

    def __init__(self, recording: Recording, clock: VirtualClock) -> None:
        self._clock = clock
        self._plans = deque(recording.plans())
        self._results: deque[Collected] = deque(recording.results())

    def submit(self, plan: StepPlan) -> None:
        """Compare with the recording."""
        if not self._plans:
            raise PlanMismatch(f"step {plan.step} was not recorded")
        recorded = self._plans.popleft()
        if plan != recorded:
            raise PlanMismatch(f"step {plan.step}: planned {plan}, recorded {recorded}")

    def collect(self) -> StepResult:
        """The oldest recorded result not yet collected."""
        time_s, result = self._results.popleft()
        self._clock.advance_to(time_s)
        return result

    def close(self) -> None:
        """Nothing to stop."""
