"""Lab: the real scheduler over one memory, cut into blocks of 2,048 tokens (one reservation) down to 1.

A block as long as the context limit *is* contiguous reservation: a request gets all that it could ever
need. Smaller blocks are paging. The second part attends over blocks in order and over shuffled ones.
"""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from ridgeline.cli.labs import Exercise, Lab, LabContext, LabResult, Relation
from ridgeline.core.config import SchedulerConfig
from ridgeline.core.plan import StepPlan
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler
from ridgeline.engine.engine import Engine
from ridgeline.facts.kv_layout import KvGroup, KvLayout
from ridgeline.runtime.batch import Batch
from ridgeline.runtime.ops import AttentionSpec
from ridgeline.runtime.reference.kv import KvCache
from ridgeline.runtime.reference.ops import ReferenceOps
from ridgeline.sim.executors import SimulatedExecutor
from ridgeline.sim.run import simulate
from ridgeline.sim.virtual_clock import VirtualClock

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_MODEL_LEN = 2_048
POOL_TOKENS = 16 * MAX_MODEL_LEN
BLOCK_SIZES = (2_048, 512, 128, 16, 1)
Lengths = list[tuple[int, int]]
"""(prompt tokens, generated tokens) of each request."""


def chat_lengths(count: int) -> Lengths:
    """Log-normal prompts (median 180) and answers (median 150): most are short, a few are long."""
    rng = random.Random(0)

    def draw(median: float, sigma: float, most: int) -> int:
        return max(1, min(most, round(median * rng.lognormvariate(0, sigma))))

    return [(draw(180, 1.0, 1_024), draw(150, 0.8, 1_000)) for _ in range(count)]


@dataclass
class Occupancy:
    """Watches plans: what their rows hold, and what of it is used."""

    block_size: int
    running: list[int] = field(default_factory=list)
    used_tokens: int = 0
    held_tokens: int = 0

    def watch(self, plan: StepPlan) -> float:
        """A duration function: every step takes one second."""
        self.running.append(len(plan.rows))
        self.used_tokens += sum(row.start + row.count for row in plan.rows)
        self.held_tokens += sum(len(row.blocks[0]) * self.block_size for row in plan.rows)
        return 1.0

    @property
    def waste(self) -> float:
        """Share of the held positions that hold nothing, over all steps."""
        return 1 - self.used_tokens / self.held_tokens


def serve(lengths: Lengths, block_size: int) -> tuple[Occupancy, int]:
    """All requests at once through the real scheduler; what it held, and how often it preempted."""
    config = SchedulerConfig(
        block_size=block_size,
        num_blocks=POOL_TOKENS // block_size,
        max_num_batched_tokens=POOL_TOKENS,
        max_model_len=MAX_MODEL_LEN,
        enable_prefix_caching=False,
    )
    scheduler, clock, occupancy = Scheduler(config), VirtualClock(), Occupancy(block_size)
    engine = Engine(scheduler, SimulatedExecutor(clock, occupancy.watch), clock)
    requests = [
        (0.0, Request(f"r{i}", (1,) * prompt, generated)) for i, (prompt, generated) in enumerate(lengths)
    ]
    simulate(engine, clock, requests)
    return occupancy, scheduler.stats().num_preemptions


def run(context: LabContext) -> LabResult:
    """Waste and speed by block size, then attention over shuffled blocks."""
    chat = chat_lengths(250 if context.quick else 400)
    served = {size: serve(chat, size) for size in BLOCK_SIZES}
    uniform = [(MAX_MODEL_LEN - 32, 32)] * 48
    full = {size: serve(uniform, size)[0] for size in (MAX_MODEL_LEN, 16)}
    rows = tuple(
        (
            size,
            100 * occupancy.waste,
            100 * tail_waste(occupancy, size),
            mean(occupancy.running),
            len(occupancy.running),
            num_preemptions,
        )
        for size, (occupancy, num_preemptions) in served.items()
    )
    differences = attention_differences()
    contiguous_ms, paged_ms = attention_ms(2_048 if context.quick else 8_192)
    return LabResult(
        columns=(
            "tokens a block",
            "held in vain %",
            "by the formula %",
            "running, mean",
            "steps",
            "preemptions",
        ),
        rows=rows,
        relations=(
            *waste_relations({size: occupancy for size, (occupancy, _) in served.items()}),
            *uniform_relations(full, served[16][1]),
            *attention_relations(differences, contiguous_ms, paged_ms),
        ),
        data={
            "waste": {str(size): occupancy.waste for size, (occupancy, _) in served.items()},
            "running": {str(size): served[size][0].running for size in (MAX_MODEL_LEN, 16)},
            "attention_ms": {"contiguous": contiguous_ms, "shuffled blocks of 16": paged_ms},
        },
    )


def tail_waste(occupancy: Occupancy, block_size: int) -> float:
    """(B - 1) / 2 of a last block is empty on average, if lengths do not care about B."""
    tokens_a_row = occupancy.used_tokens / sum(occupancy.running)
    return (block_size - 1) / 2 / (tokens_a_row + (block_size - 1) / 2)


def waste_relations(by_size: dict[int, Occupancy]) -> tuple[Relation, ...]:
    """Small blocks waste little, so that more requests fit and the work takes fewer steps."""
    reserved, paged, single = by_size[MAX_MODEL_LEN], by_size[16], by_size[1]
    return (
        Relation(
            "a reservation holds more than half in vain",
            reserved.waste > 0.5,
            f"{100 * reserved.waste:.0f}% of what is held",
        ),
        Relation("blocks of 16 hold less than 5% in vain", paged.waste < 0.05, f"{100 * paged.waste:.1f}%"),
        Relation(
            "paging finishes the same requests in less than two thirds of the steps",
            3 * len(paged.running) < 2 * len(reserved.running),
            f"{len(paged.running)} against {len(reserved.running)}",
        ),
        Relation(
            "blocks of one token gain nothing more that matters",
            len(single.running) > 0.9 * len(paged.running),
            f"{len(single.running)} steps against {len(paged.running)}",
        ),
    )


def uniform_relations(full: dict[int, Occupancy], num_preemptions: int) -> tuple[Relation, ...]:
    """Where every request fills its reservation, there is nothing to gain; and paging can overcommit."""
    reserved, paged = full[MAX_MODEL_LEN], full[16]
    return (
        Relation(
            "requests that fill the context gain nothing from paging",
            len(paged.running) >= len(reserved.running),
            f"{len(paged.running)} steps, {len(reserved.running)} with a reservation",
        ),
        Relation(
            "paging promises memory that it does not have",
            num_preemptions > 0,
            f"{num_preemptions} preemptions; a reservation needs none",
        ),
    )


HEADS, KV_HEADS, HEAD_DIM = 8, 2, 64
PIECE = 1_024
"""The largest block that the native kernel takes: as good as contiguous."""


@dataclass(frozen=True)
class Sequence:
    """One decode token and its cache: q `[1, heads * dim]`, k and v `[tokens, kv_heads * dim]`."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray

    @classmethod
    def random(cls, num_tokens: int) -> Sequence:
        rng = np.random.default_rng(0)
        k, v = rng.standard_normal((2, num_tokens, KV_HEADS * HEAD_DIM), dtype=np.float32)
        return cls(rng.standard_normal((1, HEADS * HEAD_DIM), dtype=np.float32), k, v)


def tables(num_tokens: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """A block table in order, and one with the same blocks shuffled: `[1, blocks]` each."""
    ordered = np.arange(-(-num_tokens // block_size), dtype=np.int32)[None]
    return ordered, np.random.default_rng(1).permutation(ordered[0])[None].astype(np.int32)


def reference_attention(sequence: Sequence, table: np.ndarray, block_size: int) -> np.ndarray:
    """Write the whole sequence through the block table, then attend with its last token."""
    num_tokens = len(sequence.k)
    layout = KvLayout((KvGroup("full", (0,), None),), 1, KV_HEADS, HEAD_DIM, 4, block_size)
    cache = KvCache(layout, table.shape[1])
    spec = AttentionSpec(0, HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5)
    q = np.zeros((num_tokens, HEADS * HEAD_DIM), np.float32)
    q[-1] = sequence.q
    batch = Batch(
        token_ids=np.zeros(num_tokens, np.int32),
        positions=np.arange(num_tokens, dtype=np.int32),
        row_starts=np.array([0, num_tokens], np.int32),
        context_before=np.zeros(1, np.int32),
        block_tables=(table,),
        logit_rows=np.array([num_tokens - 1], np.int32),
    )
    attended: np.ndarray = ReferenceOps(batch, cache).paged_attention(q, sequence.k, sequence.v, spec)
    last: np.ndarray = attended[-1]
    return last


class NativeAttention:
    """The compiled kernel over one sequence laid out by one block table."""

    def __init__(self, native: Any, sequence: Sequence, table: np.ndarray, block_size: int) -> None:
        num_tokens = len(sequence.k)
        self._native, self._pool = native, native.ThreadPool(1)
        self._q = sequence.q
        self._y = np.empty_like(sequence.q)
        page_bytes = KV_HEADS * HEAD_DIM * block_size * 4  # K and V of one layer, bfloat16
        pages = np.zeros((table.shape[1], page_bytes), np.uint8)
        shape = (0, KV_HEADS, HEAD_DIM, block_size)
        whole, last = (np.array([0, n], np.int32) for n in (num_tokens, 1))
        native.kv_write(
            self._pool, pages, *shape, whole, np.zeros(1, np.int32), table, sequence.k, sequence.v
        )
        self._cache = (pages, *shape, last, np.array([num_tokens - 1], np.int32), table)

    def __call__(self) -> np.ndarray:
        self._native.attention(self._pool, *self._cache, self._q, self._y, HEAD_DIM**-0.5)
        return self._y


def native_module() -> Any:
    """The compiled kernels, or None where they were not built."""
    try:
        return importlib.import_module("ridgeline.runtime.native._native")
    except ImportError:
        return None


def attention_differences() -> dict[str, float]:
    """Largest difference between attention over blocks in order and shuffled, by backend."""
    sequence = Sequence.random(500)
    ordered, shuffled = tables(500, 16)
    found = {
        "reference": float(
            np.abs(
                reference_attention(sequence, ordered, 16) - reference_attention(sequence, shuffled, 16)
            ).max()
        )
    }
    if (native := native_module()) is not None:
        one, other = (NativeAttention(native, sequence, table, 16)() for table in (ordered, shuffled))
        found["native"] = float(np.abs(one - other).max())
    return found


def attention_ms(num_tokens: int, rounds: int = 15) -> tuple[float, float]:
    """Least milliseconds of one decode token's attention: pieces of 1,024 in order, shuffled blocks of 16."""
    native, sequence = native_module(), Sequence.random(num_tokens)
    calls: list[Callable[[], np.ndarray]] = []
    for size, table in ((PIECE, tables(num_tokens, PIECE)[0]), (16, tables(num_tokens, 16)[1])):
        if native is None:
            calls.append(partial(reference_attention, sequence, table, size))
        else:
            calls.append(NativeAttention(native, sequence, table, size))
    times: list[list[float]] = [[], []]
    for _ in range(2 if native is None else rounds):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    contiguous, paged = (1e3 * min(seconds) for seconds in times)
    return contiguous, paged


def attention_relations(
    differences: dict[str, float], contiguous_ms: float, paged_ms: float
) -> tuple[Relation, ...]:
    """Where blocks lie changes nothing in the result, and little in the time."""
    return (
        Relation(
            "attention over shuffled blocks equals attention over blocks in order, bit for bit",
            all(difference == 0 for difference in differences.values()),
            " and ".join(f"{name} apart by {difference:g}" for name, difference in differences.items()),
        ),
        Relation(
            "looking blocks up takes less than as long again",
            paged_ms < 2 * contiguous_ms,
            f"{paged_ms:.3f} ms against {contiguous_ms:.3f} ms in pieces of {PIECE:,}",
        ),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """What is held in vain by block size, and how many requests run at each step."""
    waste, running = figure.subplots(1, 2)
    sizes = list(result.data["waste"])
    shares = [100 * share for share in result.data["waste"].values()]
    bars = waste.bar([f"{int(size):,}" for size in sizes], shares, color="tab:gray")
    waste.bar_label(bars, fmt="%.1f", fontsize=8)
    waste.set(xlabel="tokens a block", ylabel="% of the held positions", title="held in vain", ylim=(0, 100))
    for size, label in ((MAX_MODEL_LEN, "one reservation of 2,048"), (16, "blocks of 16")):
        series = result.data["running"][str(size)]
        running.plot(range(len(series)), series, label=label)
    running.set(xlabel="step", ylabel="requests running", title="same memory, same requests", ylim=(0, None))
    running.legend(fontsize=8)


LAB = Lab(
    title="How much of the KV cache holds nothing, and what does paging cost?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question=(
                "An engine reserves 4,096 tokens for each request; requests use 700 on average. Which share "
                "of the reserved memory holds nothing, in percent?"
            ),
            answer=1 - 700 / 4_096,
            wrong="17%",
            hint="1 - used / reserved, as a percentage with its sign.",
        ),
        Exercise(
            question=("How many blocks of 16 tokens does a sequence of 1,000 tokens hold, and no more?"),
            answer=63,
            wrong="62",
            hint="Round up: the last block is not full.",
            tolerance=0.001,
        ),
        Exercise(
            question=(
                "Llama 3.1 8B (128 KiB a token) keeps blocks of 16. How many bytes does a sequence hold in "
                "vain at the very most?"
            ),
            answer=15 * 131_072,
            wrong="2 MiB",
            hint="A last block with a single token in it.",
        ),
    ),
)
