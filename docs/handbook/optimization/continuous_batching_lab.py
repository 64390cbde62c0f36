"""Lab: batches that wait for their longest member against batches that members join and leave.

First the real engine: what one decode step takes at each batch size. Then the real scheduler on a virtual
clock whose steps take just that long: the same requests in static batches and in a continuous one.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

from ridgeline.cli.labs import Exercise, Lab, LabContext, LabResult, Relation, decode_step_s
from ridgeline.core.config import SchedulerConfig
from ridgeline.core.event import Event, Finished
from ridgeline.core.plan import StepPlan
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler
from ridgeline.engine.engine import Engine
from ridgeline.sim.executors import SimulatedExecutor
from ridgeline.sim.run import simulate
from ridgeline.sim.virtual_clock import VirtualClock

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SEATS = 16
PROMPT_TOKENS = 16
SHOWN_STEPS = 1_200
"""Steps at the beginning that the plot shows."""


def line_through(points: dict[int, float]) -> tuple[float, float]:
    """Least squares over relative errors: seconds of a step = fixed + each x requests, neither below 0."""
    xs, ys = list(points), list(points.values())
    weights = [1 / y**2 for y in ys]
    total = sum(weights)
    x0 = sum(w * x for w, x in zip(weights, xs, strict=True)) / total
    y0 = sum(w * y for w, y in zip(weights, ys, strict=True)) / total
    covariance = sum(w * (x - x0) * (y - y0) for w, x, y in zip(weights, xs, ys, strict=True))
    each = max(0.0, covariance / sum(w * (x - x0) ** 2 for w, x in zip(weights, xs, strict=True)))
    return max(0.0, y0 - each * x0), each


@dataclass(frozen=True)
class Outcome:
    """One way of serving: seconds in all, rows of each decode step, seconds to finish of each request."""

    seconds: float
    rows: list[int]
    finished_s: list[float]

    @property
    def occupancy(self) -> float:
        """Mean share of the seats that a step computes for."""
        return mean(self.rows) / SEATS

    @property
    def mean_finish_s(self) -> float:
        return mean(self.finished_s)


def serve(lengths: list[int], cost: tuple[float, float], static: bool) -> Outcome:
    """All requests are there from the start. Static: the next 16 begin when the last of 16 is done."""
    rows: list[int] = []
    fixed, each = cost

    def duration(plan: StepPlan) -> float:
        rows.append(len(plan.rows))
        return fixed + each * len(plan.rows)  # prompts of one token: every step is a decode step

    clock = VirtualClock()
    config = SchedulerConfig(block_size=16, num_blocks=4_096, max_num_seqs=SEATS)
    engine = Engine(Scheduler(config), SimulatedExecutor(clock, duration), clock)
    requests = [Request(f"r{i}", (i + 1,), length) for i, length in enumerate(lengths)]
    events: list[Event] = []
    size = SEATS if static else len(requests)
    for start in range(0, len(requests), size):
        now = clock.now()
        events += simulate(engine, clock, [(now, request) for request in requests[start : start + size]])
    finished = [event.time_s for event in events if isinstance(event, Finished)]
    return Outcome(clock.now(), rows, finished)


def run(context: LabContext) -> LabResult:
    """Step times on the real engine, then static and continuous batching over mixed and equal lengths."""
    batches = (1, 4, 16) if context.quick else (1, 2, 4, 8, 16, 32)
    with context.llm(enable_prefix_caching=False, max_num_seqs=max(batches)) as llm:
        decode_step_s(llm, 2, 4, PROMPT_TOKENS)
        step_s = {
            batch: decode_step_s(llm, batch, 12 if context.quick else 24, PROMPT_TOKENS) for batch in batches
        }
    cost = line_through(step_s)
    rng = random.Random(0)
    count = 160 if context.quick else 480
    workloads = {
        "mixed": [max(1, min(1_000, round(rng.expovariate(1 / 150)))) for _ in range(count)],
        "equal": [150] * count,
    }
    outcomes = {
        (name, kind): serve(lengths, cost, static=kind == "static")
        for name, lengths in workloads.items()
        for kind in ("static", "continuous")
    }
    return LabResult(
        columns=("answers", "batching", "seconds", "tokens/s", "seats used %", "mean s to the end"),
        rows=tuple(
            (name, kind, o.seconds, sum(workloads[name]) / o.seconds, 100 * o.occupancy, o.mean_finish_s)
            for (name, kind), o in outcomes.items()
        ),
        relations=(*step_relations(step_s), *batching_relations(outcomes, len(workloads["mixed"]))),
        data={
            "step_ms": {str(batch): 1e3 * s for batch, s in step_s.items()},
            "fixed_ms": 1e3 * cost[0],
            "each_ms": 1e3 * cost[1],
            "rows": {kind: outcomes["mixed", kind].rows for kind in ("static", "continuous")},
        },
    )


def step_relations(step_s: dict[int, float]) -> tuple[Relation, ...]:
    """A step reads the weights once, for one request or for all."""
    most = max(step_s)
    ratio = step_s[most] / step_s[1]
    return (
        Relation(
            "a step for all costs less than as many steps for one",
            ratio < most / 1.3,
            f"{1e3 * step_s[most]:.1f} ms for {most}, {1e3 * step_s[1]:.1f} ms for 1: {ratio:.1f} times",
        ),
    )


def batching_relations(outcomes: dict[tuple[str, str], Outcome], count: int) -> tuple[Relation, ...]:
    """Seats that empty are filled again, unless all empty at once."""
    static, continuous = outcomes["mixed", "static"], outcomes["mixed", "continuous"]
    equal = outcomes["equal", "static"].seconds / outcomes["equal", "continuous"].seconds
    gain = static.seconds / continuous.seconds
    harmonic = sum(1 / k for k in range(1, SEATS + 1))
    return (
        Relation(
            "with answers of mixed length continuous batching is faster",
            gain > 1.05,
            f"{gain:.2f} times, over {count} requests",
        ),
        Relation(
            "a static batch uses its seats about as the formula says, 1 / H(16)",
            math.isclose(static.occupancy, 1 / harmonic, rel_tol=0.25),
            f"{100 * static.occupancy:.0f}% of the seats, formula {100 / harmonic:.0f}%",
        ),
        Relation(
            "a continuous one uses more than 80% of them",
            continuous.occupancy > 0.8,
            f"{100 * continuous.occupancy:.0f}%, its ending included",
        ),
        Relation(
            "and a request is done earlier on average",
            continuous.mean_finish_s < static.mean_finish_s,
            f"after {continuous.mean_finish_s:.1f} s instead of {static.mean_finish_s:.1f} s",
        ),
        Relation(
            "with answers of equal length there is nothing to gain",
            math.isclose(equal, 1, rel_tol=0.02),
            f"{equal:.2f} times",
        ),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """Seats in use in the first steps, both ways; the time of a step against its requests, with the line."""
    seats, steps = figure.subplots(1, 2)
    for kind, rows in result.data["rows"].items():
        seats.step(range(SHOWN_STEPS), rows[:SHOWN_STEPS], where="post", label=kind)
    seats.set(xlabel="step", ylabel=f"requests in the step, of {SEATS}", title="mixed answers", ylim=(0, 19))
    seats.set_yticks(range(0, SEATS + 1, 4))
    seats.legend(fontsize=8, loc="upper right", ncols=2)
    measured = {int(batch): ms for batch, ms in result.data["step_ms"].items()}
    steps.plot(list(measured), list(measured.values()), marker="o", linestyle="", label="measured")
    line = [result.data["fixed_ms"] + result.data["each_ms"] * batch for batch in measured]
    steps.plot(list(measured), line, color="tab:gray", label="fixed + each x requests")
    steps.set(xlabel="requests in the step", ylabel="ms a step", title="one decode step", ylim=(0, None))
    steps.legend(fontsize=8)


LAB = Lab(
    title="What do requests that join and leave at every step gain over fixed batches?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question=(
                "A static batch of 4 generates 100, 200, 300 and 1,000 tokens. Which share of its seats is "
                "used, in percent?"
            ),
            answer=1_600 / 4_000,
            wrong="25%",
            hint="Tokens generated over seats x steps; the batch lasts 1,000 steps.",
        ),
        Exercise(
            question=(
                "A step takes 4.5 ms plus 0.08 ms for each request in it. How many tokens a second do 64 "
                "requests get together?"
            ),
            answer=64 / (0.0045 + 64 * 0.00008),
            wrong="14222",
            hint="64 tokens every 4.5 + 64 x 0.08 ms.",
        ),
        Exercise(
            question="All answers have exactly 200 tokens and all requests are there: is continuous faster?",
            answer=("no",),
            wrong="yes",
            hint="When do seats empty?",
        ),
    ),
)
