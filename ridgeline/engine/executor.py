"""The executor protocol: native, reference, torch, simulated and replayed all look like this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ridgeline.core.plan import StepPlan, StepResult


@dataclass(slots=True)
class StepSeconds:
    """Where the time of all steps so far went.

    `schedule_s` plans and applies, `batch_s` turns plans into arrays, `forward_s` is the kernels,
    `sample_s` chooses tokens, `output_s` makes deltas of them: text, stops, handing over. With
    overlap, `schedule_s` and `output_s` may run beside the executor's three, so they need not add up.
    """

    schedule_s: float = 0.0
    batch_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0
    output_s: float = 0.0

    def by_stage(self) -> dict[str, float]:
        """Stage -> seconds."""
        return {
            "schedule": self.schedule_s,
            "batch": self.batch_s,
            "kernels": self.forward_s,
            "sample": self.sample_s,
            "output": self.output_s,
        }


class Executor(Protocol):
    """Runs plans in the order in which they were submitted.

    `collect` returns the result of the oldest plan not yet collected, waiting for it if need be.
    It never raises for a failed step: it returns a `StepResult` whose `error` is set.
    One that measures its stages has them in an attribute `seconds`, a `StepSeconds`.
    """

    def submit(self, plan: StepPlan) -> None: ...

    def collect(self) -> StepResult: ...

    def close(self) -> None: ...
