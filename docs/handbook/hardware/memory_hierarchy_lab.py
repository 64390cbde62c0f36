"""Lab: how fast this machine reads sets of each size, in order and at random; what decoding makes of it.

One thread throughout, of numpy and of the engine, so that the two can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from ridgeline import SamplingParams
from ridgeline.cli.labs import Exercise, Lab, LabContext, LabResult, Relation, text_tokens, token_times
from ridgeline.facts.formulas import weight_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ridgeline import LLM

PRECISIONS = ("bf16", "int8", "int4")
SMALL_BYTES = 128 << 10
"""A set that lies in the cache of any core of today."""


def reader(num_bytes: int, pass_bytes: int) -> Callable[[], float]:
    """A function that reads a set over and over, `pass_bytes` in all, and gives bytes a second.

    One call of numpy goes over the same set many times (a view whose rows all are the one array), so that
    the call itself does not count. The maximum of the values is what is cheapest to compute of them.
    """
    values = np.ones(num_bytes // 4, np.float32)
    rounds = max(1, pass_bytes // num_bytes)
    again = np.lib.stride_tricks.as_strided(values, (rounds, values.size), (0, 4), writeable=False)
    found = np.empty(rounds, np.float32)

    def read() -> float:
        start = time.perf_counter()
        np.maximum.reduce(again, axis=1, out=found)
        return rounds * num_bytes / (time.perf_counter() - start)

    return read


def gatherer(num_bytes: int, count: int) -> Callable[[], float]:
    """A function that fetches `count` single numbers from random places of a set: seconds of each."""
    values = np.ones(num_bytes // 4, np.float32)
    places = np.random.default_rng(0).integers(0, values.size, count)
    out = np.empty(count, np.float32)

    def gather() -> float:
        start = time.perf_counter()
        np.take(values, places, out=out, mode="clip")
        return (time.perf_counter() - start) / count

    return gather


def decode_step_s(llm: LLM, num_tokens: int) -> float:
    """Median seconds of a step of one request with a short context."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    times, _ = token_times(llm, text_tokens(llm, 16), params)
    return median(after - before for before, after in pairwise(times))


def prefill_s(llm: LLM, num_tokens: int) -> float:
    """Seconds to the first token of a prompt."""
    params = SamplingParams(max_tokens=1, temperature=0)
    return token_times(llm, text_tokens(llm, num_tokens), params)[0][0]


def measure_engine(context: LabContext) -> dict[str, tuple[int, float, float]]:
    """Precision -> bytes of the weights, seconds of a decode step and of a prefill, engines taking turns."""
    rounds, prompt = (4, 128) if context.quick else (12, 256)
    steps: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    prefills: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(
                context.llm(weights=name, num_threads=1, enable_prefix_caching=False, num_blocks=64)
            )
            for name in PRECISIONS
        }
        for _ in range(rounds):
            for name, llm in engines.items():
                steps[name].append(decode_step_s(llm, 10))
                prefills[name].append(prefill_s(llm, prompt))
        sizes = {
            name: weight_bytes(llm.spec, llm.config.weights, llm.config.head_weights)
            for name, llm in engines.items()
        }
    return {name: (sizes[name], median(steps[name]), median(prefills[name])) for name in PRECISIONS}


def run(context: LabContext) -> LabResult:
    """Bandwidth by size, the price of disorder, and decode steps of the same model at three sizes."""
    top = 27 if context.quick else 28
    sizes = [1 << power for power in range(14, top + 1, 2 if context.quick else 1)]
    sizes = sorted({*sizes, SMALL_BYTES, 1 << top})
    readers = {size: reader(size, 1 << top) for size in sizes}
    count = 1 << 18 if context.quick else 1 << 20
    gatherers = {size: gatherer(size, count) for size in (SMALL_BYTES, 1 << top)}
    speeds: dict[int, list[float]] = {size: [] for size in sizes}
    fetches: dict[int, list[float]] = {size: [] for size in gatherers}
    for _ in range(3 if context.quick else 7):
        for size, read in readers.items():
            speeds[size].append(read())
        for size, gather in gatherers.items():
            fetches[size].append(gather())
    speed = {size: max(found) for size, found in speeds.items()}  # noise only slows down
    fetch = {size: min(found) for size, found in fetches.items()}
    del readers, gatherers
    engine = measure_engine(context)
    return LabResult(
        columns=("what is read", "MiB", "ms", "GB/s"),
        rows=(
            *(
                (f"{size >> 10} KiB in order", size / 2**20, 1e3 * size / s, s / 1e9)
                for size, s in speed.items()
            ),
            *(
                ("single numbers at random", size / 2**20, 1e3 * count * s, 4 / s / 1e9)
                for size, s in fetch.items()
            ),
            *(
                (f"decode step, {name}", b / 2**20, 1e3 * s, b / s / 1e9)
                for name, (b, s, _) in engine.items()
            ),
            *((f"prefill, {name}", b / 2**20, 1e3 * s, b / s / 1e9) for name, (b, _, s) in engine.items()),
        ),
        relations=(*memory_relations(speed, fetch), *engine_relations(engine)),
        data={
            "speed": {str(size): s for size, s in speed.items()},
            "decode": {name: {"bytes": b, "s": s} for name, (b, s, _) in engine.items()},
        },
    )


def memory_relations(speed: dict[int, float], fetch: dict[int, float]) -> tuple[Relation, ...]:
    """Near is fast, and far is worse still without order."""
    largest = max(speed)
    near, far = speed[SMALL_BYTES], speed[largest]
    return (
        Relation(
            "a set that fits in the core's cache is read faster than one that fits in none",
            near > 1.5 * far,
            f"{near / 1e9:.0f} GB/s for {SMALL_BYTES >> 10} KiB, {far / 1e9:.0f} for {largest >> 20} MiB",
        ),
        Relation(
            "single numbers at random take longer from the large set",
            fetch[largest] > 2 * fetch[SMALL_BYTES],
            f"{1e9 * fetch[SMALL_BYTES]:.1f} ns each, and {1e9 * fetch[largest]:.1f} ns",
        ),
        Relation(
            "and use less than a third of what the same memory gives in order",
            4 / fetch[largest] < far / 3,
            f"{4e-9 / fetch[largest]:.2f} of {far / 1e9:.0f} GB/s",
        ),
    )


def engine_relations(engine: dict[str, tuple[int, float, float]]) -> tuple[Relation, ...]:
    """A decode step follows the bytes of the weights."""
    most, fewest = engine["bf16"], min(engine.values())
    bytes_ratio, step_ratio = most[0] / fewest[0], most[1] / fewest[1]
    prefill_ratio = most[2] / fewest[2]
    return (
        Relation(
            "the weights with the fewest bytes take the shorter decode step",
            step_ratio > 1.15,
            f"bf16 over the smallest: {bytes_ratio:.1f} times the bytes, {step_ratio:.1f} times the step, "
            f"{prefill_ratio:.1f} times the prefill",
        ),
        Relation(
            "prefill gains less than decode",
            prefill_ratio < step_ratio,
            f"{prefill_ratio:.1f} and {step_ratio:.1f} times",
        ),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """Bandwidth by size with the decode steps among it; a step's time against its bytes."""
    bandwidth, steps = figure.subplots(1, 2)
    sizes = [int(size) for size in result.data["speed"]]
    bandwidth.plot(
        [size / 2**20 for size in sizes], [s / 1e9 for s in result.data["speed"].values()], marker="."
    )
    decode = result.data["decode"]
    for color, (name, point) in zip(("tab:red", "tab:orange", "tab:green"), decode.items(), strict=True):
        bandwidth.plot(
            point["bytes"] / 2**20,
            point["bytes"] / point["s"] / 1e9,
            marker="*",
            linestyle="",
            color=color,
            label=name,
        )
        steps.plot(
            point["bytes"] / 1e6,
            1e3 * point["s"],
            marker="*",
            markersize=10,
            linestyle="",
            color=color,
            label=name,
        )
    bandwidth.set(
        xscale="log", yscale="log", xlabel="MiB read over and over", ylabel="GB/s", title="one thread reading"
    )
    bandwidth.legend(fontsize=8, title="decode with")
    most = max(point["bytes"] for point in decode.values()) / 1e6
    far = result.data["speed"][str(max(sizes))]
    steps.plot([0, most], [0, 1e9 * most / far], color="tab:gray", label="bytes / memory's speed")
    steps.set(xlabel="MB of weights", ylabel="ms", title="one decode step", xlim=(0, None), ylim=(0, None))
    steps.legend(fontsize=8)


LAB = Lab(
    title="How much slower is memory that is farther away, and what does decoding make of it?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question="A memory gives 819 GB/s. How many ms does a decode step take at least that reads 8 GB?",
            answer=1e3 * 8 / 819,
            wrong="102",
            hint="Bytes over bytes a second.",
        ),
        Exercise(
            question=(
                "An H100 (3.35 TB/s) reads 12 GB of its weights in place and 3 GB over PCIe at 50 GB/s, one "
                "after the other, at every step. How many ms is a step?"
            ),
            answer=1e3 * (12 / 3350 + 3 / 50),
            wrong="4.5",
            hint="12 / 3,350 s and 3 / 50 s, added.",
        ),
        Exercise(
            question="At a latency of 500 ns, how many bytes must be under way to draw 3.35 TB/s?",
            answer=3.35e12 * 500e-9,
            wrong="64",
            hint="Little's law: rate x time.",
        ),
    ),
)
