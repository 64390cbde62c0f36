"""Lab: what a shared prefix saves on the real engine, and what the index costs when nothing is shared."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from ridgeline import SamplingParams
from ridgeline.cli.labs import Exercise, Lab, LabContext, LabResult, Relation, text_tokens
from ridgeline.core.config import SchedulerConfig
from ridgeline.core.prefix_index import extend_names, root_name
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler
from ridgeline.engine.engine import Engine
from ridgeline.sim.executors import SimulatedExecutor
from ridgeline.sim.run import simulate
from ridgeline.sim.virtual_clock import VirtualClock

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ridgeline import LLM

QUESTION_TOKENS = 24
BLOCK_SIZE = 16
DOCUMENT_TOKENS, POOL_DOCUMENTS = 1_024, 10


def ask(llm: LLM, prompt: list[int], num_tokens: int = 1) -> tuple[float, int, tuple[int, ...]]:
    """Seconds to the first token, prompt tokens found in the cache, and the tokens generated."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    first_s, num_cached = 0.0, 0
    token_ids: list[int] = []
    start = time.perf_counter()
    for delta in llm.stream(prompt, params):
        if delta.token_ids and not token_ids:
            first_s = time.perf_counter() - start
        token_ids += delta.token_ids
        if delta.usage is not None:
            num_cached = delta.usage.num_cached_tokens
    return first_s, num_cached, tuple(token_ids)


def prompt_of(llm: LLM, num_prefix: int, document: int, question: int) -> list[int]:
    """A document and a question; documents differ in their first token, so they share no block."""
    return [
        1_000 + document,
        *text_tokens(llm, num_prefix - 1),
        *text_tokens(llm, QUESTION_TOKENS, offset=31 * question + 5),
    ]


def cold_and_warm(llm: LLM, num_prefix: int, document: int) -> dict[str, float]:
    """The same prefix twice, with different questions; the least of two such pairs."""
    pairs = []
    for number in (document, document + 1):
        cold_s, cold_hit, _ = ask(llm, prompt_of(llm, num_prefix, number, question=0))
        warm_s, warm_hit, _ = ask(llm, prompt_of(llm, num_prefix, number, question=1))
        pairs.append((cold_s, warm_s, cold_hit, warm_hit))
    return {
        "cold_s": min(pair[0] for pair in pairs),
        "warm_s": min(pair[1] for pair in pairs),
        "cold_hit": max(pair[2] for pair in pairs),
        "warm_hit": min(pair[3] for pair in pairs),
    }


def naming_s(prompt: list[int]) -> float:
    """Seconds to name all full blocks of a prompt: what caching adds when nothing is ever found."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        extend_names([], root_name(b""), prompt, BLOCK_SIZE, len(prompt) // BLOCK_SIZE)
        times.append(time.perf_counter() - start)
    return min(times)


def hit_rate(num_documents: int, order: str, num_visits: int) -> float:
    """Share of prompt tokens found, visiting documents in turn or at random; the pool holds ten."""
    blocks = -(-(DOCUMENT_TOKENS + QUESTION_TOKENS) // BLOCK_SIZE)
    config = SchedulerConfig(
        block_size=BLOCK_SIZE,
        num_blocks=POOL_DOCUMENTS * blocks,
        max_num_seqs=1,
        max_num_batched_tokens=4_096,
        max_model_len=4_096,
    )
    clock = VirtualClock()
    scheduler = Scheduler(config)
    engine = Engine(scheduler, SimulatedExecutor(clock, lambda plan: 1.0), clock)
    rng = random.Random(0)
    for visit in range(num_documents + num_visits):
        document = visit % num_documents if order == "in turn" else rng.randrange(num_documents)
        prompt = (document, *range(100, 99 + DOCUMENT_TOKENS), *((10_000 + visit,) * QUESTION_TOKENS))
        simulate(engine, clock, [(clock.now(), Request(f"v{visit}", prompt, 1))])
        if visit == num_documents - 1:
            before = scheduler.stats()  # the first round is cold whatever the pool holds
    after = scheduler.stats()
    asked = after.num_prefix_tokens_asked - before.num_prefix_tokens_asked
    return (after.num_prefix_tokens_hit - before.num_prefix_tokens_hit) / asked


def run(context: LabContext) -> LabResult:
    """Cold and warm first tokens on the real engine, naming costs, then hit rates against the pool's size."""
    lengths = (128, 512) if context.quick else (64, 128, 256, 512, 1_024, 2_048)
    with context.llm(enable_prefix_caching=True, block_size=BLOCK_SIZE) as llm:
        ask(llm, text_tokens(llm, 32), 4)
        measured = {length: cold_and_warm(llm, length, 10 * i) for i, length in enumerate(lengths)}
        prompt = prompt_of(llm, lengths[-1], 900, 0)
        answers = [ask(llm, prompt, 12) for _ in range(2)]
        changed = ask(llm, [prompt[0] + 1, *prompt[1:]])[1]
    naming = naming_s(prompt)
    documents = (5, 10, 20) if context.quick else (5, 8, 9, 10, 11, 12, 14, 16, 20, 30, 40)
    visits = 60 if context.quick else 300
    rates = {order: {n: hit_rate(n, order, visits) for n in documents} for order in ("in turn", "at random")}
    return LabResult(
        columns=("shared tokens", "found", "cold ms", "warm ms", "cold / warm"),
        rows=tuple(
            (n, m["warm_hit"], 1e3 * m["cold_s"], 1e3 * m["warm_s"], m["cold_s"] / m["warm_s"])
            for n, m in measured.items()
        ),
        relations=(
            *saving_relations(measured),
            Relation(
                "the answer is the same, computed or found",
                answers[0][2] == answers[1][2] and answers[1][1] > 0,
                f"{len(answers[0][2])} tokens, {answers[1][1]} prompt tokens found the second time",
            ),
            Relation("another first token, and nothing is found", changed == 0, f"{changed} tokens"),
            *cost_relations(naming, measured[lengths[-1]]["cold_s"], len(prompt), rates),
        ),
        data={
            "measured": {str(n): m for n, m in measured.items()},
            "naming_us_a_token": 1e6 * naming / len(prompt),
            "hit_rate": {order: {str(n): r for n, r in by.items()} for order, by in rates.items()},
        },
    )


def saving_relations(measured: dict[int, dict[str, float]]) -> tuple[Relation, ...]:
    """What is found needs no prefill."""
    short, long = min(measured), max(measured)
    gains = {n: measured[n]["cold_s"] / measured[n]["warm_s"] for n in (short, long)}
    whole_blocks = all(m["warm_hit"] == n // BLOCK_SIZE * BLOCK_SIZE for n, m in measured.items())
    return (
        Relation(
            "every whole block of the prefix is found, and nothing the first time",
            whole_blocks and all(m["cold_hit"] == 0 for m in measured.values()),
            f"{measured[long]['warm_hit']:.0f} of {long} shared tokens",
        ),
        Relation(
            "a long prefix that is found at least halves the time to the first token",
            gains[long] > 2,
            f"{gains[long]:.1f} times faster at {long} tokens",
        ),
        Relation(
            "the longer the prefix, the more it saves",
            measured[long]["cold_s"] - measured[long]["warm_s"]
            > measured[short]["cold_s"] - measured[short]["warm_s"],
            f"{gains[short]:.1f} times at {short} tokens, {gains[long]:.1f} times at {long}",
        ),
    )


def cost_relations(
    naming: float, cold_s: float, num_tokens: int, rates: dict[str, dict[int, float]]
) -> tuple[Relation, ...]:
    """When nothing is shared it costs little; when the pool is too small it is worth nothing."""
    in_turn = rates["in turn"]
    small, large = min(in_turn), 2 * POOL_DOCUMENTS
    return (
        Relation(
            "naming the blocks of a unique prompt costs less than a fiftieth of computing it",
            50 * naming < cold_s,
            f"{1e6 * naming / num_tokens:.2f} us and {1e6 * cold_s / num_tokens:.0f} us a token",
        ),
        Relation(
            "documents that fit the pool are found",
            in_turn[small] > 0.9,
            f"{100 * in_turn[small]:.0f}% of the tokens of {small} documents, pool of {POOL_DOCUMENTS}",
        ),
        Relation(
            "twice as many as fit, visited in turn, are never found",
            in_turn[large] < 0.1,
            f"{100 * in_turn[large]:.0f}%, and {100 * rates['at random'][large]:.0f}% when visited at random",
        ),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """First-token times against the shared prefix; hit rate against what the pool is asked to hold."""
    first, rate = figure.subplots(1, 2)
    measured = {int(n): m for n, m in result.data["measured"].items()}
    for key, label in (("cold_s", "computed"), ("warm_s", "found")):
        first.plot(list(measured), [1e3 * m[key] for m in measured.values()], marker="o", label=label)
    first.set(xlabel="shared prompt tokens", ylabel="ms to the first token", title="prefix", ylim=(0, None))
    first.legend(fontsize=8)
    for order, by in result.data["hit_rate"].items():
        rate.plot([int(n) for n in by], [100 * r for r in by.values()], marker="o", label=f"visited {order}")
    rate.axvline(POOL_DOCUMENTS, color="tab:gray", linestyle=":")
    rate.annotate(
        "the pool's size", (POOL_DOCUMENTS, 97), xytext=(6, 0), textcoords="offset points", fontsize=8
    )
    rate.set(xlabel="documents in use", ylabel="% of prompt tokens found", title="eviction", ylim=(-3, 103))
    rate.legend(fontsize=8, loc="center right")


LAB = Lab(
    title="What does a shared prefix save, and when is it not found?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question=(
                "Two prompts share their first 1,000 tokens and differ then. With blocks of 16, how many "
                "tokens does the second one find?"
            ),
            answer=992,
            wrong="1000",
            hint="Only whole blocks have a name: 62 of them.",
            tolerance=0.001,
        ),
        Exercise(
            question=(
                "Prompts have 2,500 tokens, of which 2,000 are found. How many times as many prompts a "
                "second can prefill serve (ignoring attention)?"
            ),
            answer=5.0,
            wrong="4",
            hint="Only 500 tokens of each are computed.",
        ),
        Exercise(
            question=(
                "A prompt template begins with the current time in seconds, then 3,000 fixed tokens. How "
                "many of these are found by the next request?"
            ),
            answer=("0", "none", "zero"),
            wrong="3000",
            hint="What does the name of the second block depend on?",
        ),
    ),
)
