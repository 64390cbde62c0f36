"""Lab: attention with the whole score matrix and tile by tile: one result, other bytes; and the engine's own.

Both numpy versions count what a machine with a small fast memory has to move to and from the large slow
one: every array that is larger than a tile, each time it is read or written.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ridgeline import SamplingParams
from ridgeline.cli.lab_models import known_model
from ridgeline.cli.labs import Exercise, Lab, LabContext, LabResult, Relation, text_tokens, token_times
from ridgeline.engine.build import prepare
from ridgeline.engine.options import EngineOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ridgeline import LLM

Array = npt.NDArray[np.float32]

HEAD_DIM = 64
KEYS = 64
"""Keys and values of a tile."""


@dataclass
class Traffic:
    """Bytes to and from the large memory."""

    num_bytes: int = 0

    def moves(self, *arrays: Array) -> None:
        """Each of `arrays` goes over once."""
        self.num_bytes += sum(array.nbytes for array in arrays)


def naive(q: Array, k: Array, v: Array, traffic: Traffic) -> Array:
    """Causal attention `[n, d]` in three passes, as the formula is written: scores, softmax, sum."""
    n, d = q.shape
    scores = q @ k.T / np.float32(d**0.5)
    scores[np.triu_indices(n, 1)] = -np.inf
    traffic.moves(q, k, scores)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    traffic.moves(scores, shares)
    out: Array = shares @ v
    traffic.moves(shares, v, out)
    return out


def tiled(q: Array, k: Array, v: Array, traffic: Traffic, tall: int) -> Array:
    """The same with the online softmax over tiles of `tall` queries and KEYS keys; scores never leave it."""
    n, d = q.shape
    out = np.empty_like(q)
    for i in range(0, n, tall):
        queries = q[i : i + tall] / np.float32(d**0.5)
        rows = len(queries)
        maximum = np.full((rows, 1), -np.inf, np.float32)
        total = np.zeros((rows, 1), np.float32)
        weighted = np.zeros((rows, d), np.float32)
        for j in range(0, i + rows, KEYS):  # tiles that lie in the future are never touched
            keys, values = k[j : j + KEYS], v[j : j + KEYS]
            scores = queries @ keys.T
            if j + KEYS > i:
                scores[np.arange(j, j + len(keys)) > np.arange(i, i + rows)[:, None]] = -np.inf
            new = np.maximum(maximum, scores.max(axis=1, keepdims=True))
            shares, shrink = np.exp(scores - new), np.exp(maximum - new)
            total = total * shrink + shares.sum(axis=1, keepdims=True)
            weighted = weighted * shrink + shares @ values
            maximum = new
            traffic.moves(keys, values)
        out[i : i + rows] = weighted / total
        traffic.moves(queries, weighted)
    return out


WAYS: dict[str, Callable[[Array, Array, Array, Traffic], Array]] = {
    "naive": naive,
    "tiled by 64": partial(tiled, tall=64),
    "tiled by 256": partial(tiled, tall=256),
}


@dataclass(frozen=True)
class Outcome:
    """One way at one length: result, bytes moved, most bytes held beside q, k, v; seconds."""

    out: Array
    moved_bytes: int
    held_bytes: int
    seconds: float


def observe(attention: Callable[[Array, Array, Array, Traffic], Array], n: int, rounds: int) -> Outcome:
    """Run one head of attention over `n` random tokens: once traced, then timed."""
    rng = np.random.default_rng(n)
    q, k, v = (rng.standard_normal((n, HEAD_DIM)).astype(np.float32) for _ in range(3))
    traffic = Traffic()
    tracemalloc.start()
    out = attention(q, k, v, traffic)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        attention(q, k, v, Traffic())
        seconds.append(time.perf_counter() - start)
    return Outcome(out, traffic.num_bytes, held, median(seconds))


def engine_steps(llm: LLM, contexts: tuple[int, ...], rounds: int) -> dict[int, float]:
    """Median seconds of a decode step at each context, taking turns; the prefix cache keeps the prompts."""
    params = SamplingParams(max_tokens=9, temperature=0, ignore_eos=True)
    steps: dict[int, list[float]] = {n: [] for n in contexts}
    for turn in range(rounds + 1):
        for n in contexts:
            times, _ = token_times(llm, text_tokens(llm, n), params)
            if turn:  # the first computes the prompt
                steps[n].append((times[-1] - times[0]) / (len(times) - 1))
    return {n: median(seconds) for n, seconds in steps.items()}


def activation_bytes(context: LabContext, max_model_len: int) -> int:
    """What the engine's ledger sets aside for activations when requests may be this long."""
    options = EngineOptions(model=context.model, max_model_len=max_model_len, num_blocks=1_024)
    return prepare(options).ledger.entry("activations").num_bytes


def run(context: LabContext) -> LabResult:
    """Both ways at growing lengths; then decode steps of the engine at growing contexts."""
    lengths = (128, 256, 512, 1_024) if context.quick else (128, 256, 512, 1_024, 2_048, 4_096)
    found = {(name, n): observe(way, n, 3) for n in lengths for name, way in WAYS.items()}
    contexts = (32, 1_536) if context.quick else (32, 512, 1_024, 2_048, 4_096)
    with context.llm(max_model_len=max(contexts) + 64) as llm:
        steps = engine_steps(llm, contexts, 3 if context.quick else 7)
    held = [activation_bytes(context, length) for length in (512, 4_096)]
    return LabResult(
        columns=("tokens", "way", "MB moved", "MB held", "ms"),
        rows=(
            *(
                (n, name, o.moved_bytes / 1e6, o.held_bytes / 1e6, 1e3 * o.seconds)
                for (name, n), o in found.items()
            ),
            *((n, "engine, a decode step", "", held[1] / 1e6, 1e3 * s) for n, s in steps.items()),
        ),
        relations=(*numpy_relations(found, lengths), *engine_relations(steps, held)),
        data={
            "lengths": lengths,
            "moved": {name: [found[name, n].moved_bytes for n in lengths] for name in WAYS},
            "held": {name: [found[name, n].held_bytes for n in lengths] for name in WAYS},
            "step_ms": {str(n): 1e3 * s for n, s in steps.items()},
        },
    )


def numpy_relations(found: dict[tuple[str, int], Outcome], lengths: tuple[int, ...]) -> tuple[Relation, ...]:
    """Equal results; what is held grows with n x n or with n."""
    before, longest = lengths[-2], lengths[-1]
    naive, small, large = ({n: found[name, n] for n in lengths} for name in WAYS)
    error = max(float(np.abs(naive[n].out - way[n].out).max()) for n in lengths for way in (small, large))
    growth = [way[longest].held_bytes / way[before].held_bytes for way in (naive, small)]
    saved = [naive[longest].moved_bytes / way[longest].moved_bytes for way in (small, large)]
    return (
        Relation("all ways give the same result", error < 1e-4, f"largest difference {error:.1e}"),
        Relation(
            "twice the tokens: naive holds about four times as much, tiled about twice at most",
            growth[0] > 3 and growth[1] < 2.5,
            f"{growth[0]:.1f} and {growth[1]:.1f} times",
        ),
        Relation(
            "tiled moves less than half of the bytes",
            saved[0] > 2,
            f"{saved[0]:.1f} times less at {longest} tokens; the formula's limit is {4 * 64 / HEAD_DIM:.0f}",
        ),
        Relation(
            "and the taller the tile, the less",
            saved[1] > 1.5 * saved[0],
            f"{saved[1]:.1f} times less with tiles of 256 queries",
        ),
    )


def engine_relations(steps: dict[int, float], held: list[int]) -> tuple[Relation, ...]:
    """The cache is read at every step; nothing as large as the context squared is ever held."""
    short, long = min(steps), max(steps)
    return (
        Relation(
            "a decode step of the engine takes longer the longer the context",
            steps[long] > 1.05 * steps[short],
            f"{1e3 * steps[short]:.2f} ms at {short} tokens, {1e3 * steps[long]:.2f} ms at {long}",
        ),
        Relation(
            "its activations take the same room whatever the context",
            held[0] == held[1],
            f"{held[0] / 2**20:.0f} MiB for at most 512 tokens, {held[1] / 2**20:.0f} MiB for 4,096",
        ),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """Bytes moved and held by length, both ways; the engine's decode step by context."""
    numbers, steps = figure.subplots(1, 2)
    lengths = result.data["lengths"]
    for name, color in zip(WAYS, ("tab:orange", "tab:blue", "tab:green"), strict=True):
        moved, held = ([value / 1e6 for value in result.data[kind][name]] for kind in ("moved", "held"))
        numbers.plot(lengths, moved, color=color, marker=".", label=f"{name}: moved")
        numbers.plot(lengths, held, color=color, marker=".", linestyle="--", label=f"{name}: held")
    numbers.set(xscale="log", yscale="log", xlabel="tokens", ylabel="MB, one head", title="numpy, float32")
    numbers.set_xticks(lengths, [str(n) for n in lengths])
    numbers.minorticks_off()
    numbers.legend(fontsize=8)
    step_ms = {int(n): ms for n, ms in result.data["step_ms"].items()}
    steps.plot(list(step_ms), list(step_ms.values()), marker="o")
    steps.set(xlabel="tokens of context", ylabel="ms", title="the engine's decode step", ylim=(0, None))


LLAMA_8B = known_model("Llama-3.1-8B")

LAB = Lab(
    title="What does attention move, and hold, with the whole score matrix and without it?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question=(
                "Llama 3.1 8B, one layer, all its query heads, 16,384 tokens, two bytes a score: how many "
                "GB is the score matrix?"
            ),
            answer=LLAMA_8B.num_heads * 16_384**2 * 2 / 1e9,
            wrong="4.3",
            hint="heads x n x n x 2 bytes.",
        ),
        Exercise(
            question=(
                "Online softmax has seen scores with maximum 2 and sum of exponentials 3. The next tile's "
                "only score is 4. What is the new sum (two decimals)?"
            ),
            answer=3 * float(np.exp(-2)) + 1,
            wrong="4",
            hint="The old sum shrinks by exp(2 - 4); the new score is the maximum and adds exp(0).",
            tolerance=0.005,
        ),
        Exercise(
            question="Does the tiled kernel do fewer multiply-adds than a naive one that skips the future?",
            answer=("no",),
            wrong="yes",
            hint="Every visible pair of query and key is still multiplied once. What is saved are bytes.",
        ),
    ),
)
