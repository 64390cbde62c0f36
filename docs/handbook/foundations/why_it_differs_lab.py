"""Lab: latency, memory, scaling and cost of text generation, each shown on the real engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ridgeline import SamplingParams
from ridgeline.cli.labs import Exercise, Lab, LabContext, LabResult, Relation, text_tokens
from ridgeline.facts.formulas import kv_bytes_per_token

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ridgeline import LLM

PRICE_PER_HOUR = 1.0
"""Dollars for the machine: the relation holds for any price."""


def generate_s(llm: LLM, batch: int, num_tokens: int) -> float:
    """Seconds to generate `num_tokens` for each of `batch` short prompts at once."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    prompts = [text_tokens(llm, 16, offset=3 * index) for index in range(batch)]
    start = time.perf_counter()
    llm.generate(prompts, params)
    return time.perf_counter() - start


def in_turn(measure: Callable[[int], float], sizes: tuple[int, ...], rounds: int) -> dict[int, float]:
    """The least of several measurements of each size, taken in turn: noise only adds, and hits all alike."""
    taken = [{size: measure(size) for size in sizes} for _ in range(rounds)]
    return {size: min(seconds[size] for seconds in taken) for size in sizes}


def run(context: LabContext) -> LabResult:
    """Answers of growing length, then growing batches."""
    num_tokens = 24 if context.quick else 64
    batches = (1, 4, 16) if context.quick else (1, 2, 4, 8, 16, 32)
    lengths = (8, 32) if context.quick else (8, 16, 32, 64, 128)
    with context.llm(enable_prefix_caching=False) as llm:
        generate_s(llm, 2, 4)
        answer_s = in_turn(partial(generate_s, llm, 1), lengths, rounds=3)
        batch_s = in_turn(lambda batch: generate_s(llm, batch, num_tokens), batches, rounds=4)
        kv_bytes = kv_bytes_per_token(llm.spec, llm.config.kv_bytes_per_element)
    speed = {batch: batch * num_tokens / seconds for batch, seconds in batch_s.items()}
    cost = {batch: PRICE_PER_HOUR / 3600 / value * 1e6 for batch, value in speed.items()}
    return LabResult(
        columns=(
            "requests at once",
            "tokens/s, all",
            "tokens/s, each",
            "KV cache KiB",
            "$ a million tokens at 1 $/h",
        ),
        rows=tuple(
            (
                batch,
                speed[batch],
                speed[batch] / batch,
                batch * (16 + num_tokens) * kv_bytes / 1024,
                cost[batch],
            )
            for batch in batches
        ),
        relations=(*answer_relations(answer_s, kv_bytes), *batch_relations(speed, cost)),
        data={
            "answer_s": {str(length): value for length, value in answer_s.items()},
            "tokens_per_s": {str(batch): value for batch, value in speed.items()},
            "kv_bytes_per_token": kv_bytes,
        },
    )


def answer_relations(answer_s: dict[int, float], kv_bytes: int) -> tuple[Relation, ...]:
    """Latency and memory follow the length of the answer, which nobody knows beforehand."""
    short, long = min(answer_s), max(answer_s)
    ratio = answer_s[long] / answer_s[short]
    return (
        Relation(
            "latency grows with the answer",
            ratio > long / short / 4,
            f"{long / short:.0f} times the tokens, {ratio:.1f} times the seconds",
        ),
        Relation(
            "each token leaves bytes behind", kv_bytes > 0, f"{kv_bytes:,} bytes a token, held until the end"
        ),
    )


def batch_relations(speed: dict[int, float], cost: dict[int, float]) -> tuple[Relation, ...]:
    """Throughput grows with the batch, but less than it; each request slows; the cost falls."""
    most = max(speed)
    gain = speed[most] / speed[1]
    return (
        Relation("a batch gives more tokens a second", gain > 1.3, f"{gain:.1f} times at {most} requests"),
        Relation(
            "but less than in proportion: each request gets slower",
            gain < most,
            f"{speed[1]:.0f} tokens/s alone, {speed[most] / most:.0f} each among {most}",
        ),
        Relation(
            "so a token gets cheaper",
            cost[most] < cost[1],
            f"{cost[1]:.2f} $ and {cost[most]:.2f} $ a million",
        ),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """Seconds against the answer's length; throughput against the batch, with the proportional line."""
    latency, scaling = figure.subplots(1, 2)
    answer = {int(length): value for length, value in result.data["answer_s"].items()}
    latency.plot(list(answer), list(answer.values()), marker="o")
    latency.set(
        xlabel="tokens in the answer", ylabel="seconds", title="latency", xlim=(0, None), ylim=(0, None)
    )
    speed = {int(batch): value for batch, value in result.data["tokens_per_s"].items()}
    scaling.plot(list(speed), list(speed.values()), marker="o", label="all requests")
    scaling.plot(list(speed), [v / n for n, v in speed.items()], marker="o", label="each request")
    scaling.plot(
        list(speed), [n * speed[1] for n in speed], linestyle=":", color="tab:gray", label="in proportion"
    )
    scaling.set(xscale="log", yscale="log", xlabel="requests at once", ylabel="tokens/s", title="scaling")
    scaling.legend(fontsize=8)


LAB = Lab(
    title="Why does serving a language model differ from other inference?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question=(
                "A GPU of 3 dollars an hour generates 2,500 tokens a second over all its requests. Dollars "
                "a million tokens?"
            ),
            answer=3 / 3600 / 2_500 * 1e6,
            wrong="1.2",
            hint="Dollars a second divided by tokens a second, times a million.",
        ),
        Exercise(
            question=(
                "Alone a request gets 100 tokens a second; among 16 each gets 40. How many times the "
                "throughput is that?"
            ),
            answer=6.4,
            wrong="0.4",
            hint="16 x 40 tokens a second in all.",
        ),
        Exercise(
            question=(
                "Two requests with the same prompt length: can you tell before they run which one needs "
                "more memory?"
            ),
            answer=("no",),
            wrong="yes",
            hint="What does the length of an answer depend on?",
        ),
    ),
)
