"""How long the scheduler takes to plan and apply one step of a full batch of decoding requests.

    python benchmarks/scheduler.py [--requests 256] [--steps 400] [--repeats 7] [--json]

Recipe: that many requests with distinct 128-token prompts are brought to decoding; then `plan` and
`apply` are timed step by step, with results that cost nothing. A repeat is a fresh scheduler, and its
figure the median of its steps; reported is the best repeat (other work on the machine only ever makes it
slower), its 95th percentile, which is that of the steps in which many requests take and hash a block at
once, and the median of the repeats.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ridgeline.core.config import SchedulerConfig
from ridgeline.core.plan import StepPlan, StepResult
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler

PROMPT_TOKENS = 128


def decoding_scheduler(num_requests: int, num_steps: int) -> Scheduler:
    """A scheduler whose requests have all sampled their first token, with room for `num_steps` more."""
    length = PROMPT_TOKENS + num_steps + 8
    config = SchedulerConfig(
        block_size=16,
        num_blocks=num_requests * (length // 16 + 2),
        max_num_seqs=num_requests,
        max_num_batched_tokens=8192,
        max_model_len=length,
    )
    scheduler = Scheduler(config)
    for i in range(num_requests):
        prompt = tuple((i * 7919 + j) % 32_000 for j in range(PROMPT_TOKENS))
        scheduler.add(Request(f"request-{i}", prompt, num_steps + 4, frozenset({0})), 0.0)
    while scheduler.num_waiting:
        plan = scheduler.plan(0.0)
        assert plan is not None
        scheduler.apply(plan, result_of(plan), 0.0)
    return scheduler


def result_of(plan: StepPlan) -> StepResult:
    """Token 1 for every sample."""
    return StepResult(plan.step, tuple((1,) * row.num_samples for row in plan.rows), 0.0)


def step_seconds(scheduler: Scheduler, num_steps: int) -> list[float]:
    """Seconds of plan + apply, per step; making the result is not timed."""
    seconds = []
    for _ in range(num_steps):
        begin = time.perf_counter()
        plan = scheduler.plan(0.0)
        planned = time.perf_counter()
        assert plan is not None
        result = result_of(plan)
        ready = time.perf_counter()
        scheduler.apply(plan, result, 0.0)
        seconds.append(planned - begin + time.perf_counter() - ready)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    medians, tails = [], []
    for _ in range(options.repeats):
        scheduler = decoding_scheduler(options.requests, options.steps)
        seconds = step_seconds(scheduler, options.steps)
        medians.append(1e3 * statistics.median(seconds))
        tails.append(1e3 * statistics.quantiles(seconds, n=20)[-1])
    figures = {
        "benchmark": "scheduler",
        "requests": options.requests,
        "steps": options.steps,
        "repeats": options.repeats,
        "plan_and_apply_ms_best": round(min(medians), 4),
        "plan_and_apply_ms_median": round(statistics.median(medians), 4),
        "plan_and_apply_ms_p95_best": round(min(tails), 4),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    if options.json:
        print(json.dumps(figures))
        return
    size = f"{options.requests} decoding requests, {options.steps} steps x {options.repeats} repeats"
    print(f"plan + apply, {size}")
    print(f"  best repeat's median   {figures['plan_and_apply_ms_best']:.3f} ms")
    print(f"  median of the repeats  {figures['plan_and_apply_ms_median']:.3f} ms")
    print(f"  best repeat's p95      {figures['plan_and_apply_ms_p95_best']:.3f} ms")
    print(f"  recipe: python benchmarks/scheduler.py (Python {figures['python']}, {figures['machine']})")


if __name__ == "__main__":
    main()
