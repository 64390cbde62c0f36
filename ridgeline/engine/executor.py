"""The executor protocol: native, reference, torch, simulated and replayed all look like this."""

from __future__ import annotations

from typing import Protocol

from ridgeline.core.plan import StepPlan, StepResult


class Executor(Protocol):
    """Runs plans in the order in which they were submitted.

    `collect` returns the result of the oldest plan not yet collected, waiting for it if need be.
    It never raises for a failed step: it returns a `StepResult` whose `error` is set.
    """

    def submit(self, plan: StepPlan) -> None: ...

    def collect(self) -> StepResult: ...

    def close(self) -> None: ...
