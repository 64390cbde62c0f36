"""Lab: the same text generated with the KV cache and by computing every token anew at each step."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ridgeline import SamplingParams
from ridgeline.cli.lab_models import known_model
from ridgeline.cli.labs import Exercise, Lab, LabContext, LabResult, Relation, text_tokens, token_times
from ridgeline.facts.formulas import kv_bytes_per_token

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ridgeline import LLM

NUM_PROMPT = 16
WINDOW = 8
"""Steps at either end, of which the fastest counts: noise only adds."""


def with_cache(llm: LLM, prompt: list[int], num_tokens: int) -> tuple[list[float], list[int]]:
    """Seconds of each step of an ordinary generation, and its tokens."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    times, token_ids = token_times(llm, prompt, params)
    return [after - before for before, after in zip([0.0, *times], times)], token_ids


def without_cache(llm: LLM, prompt: list[int], num_tokens: int) -> tuple[list[float], list[int]]:
    """The same by asking for one token at a time: all tokens so far are the prompt, nothing is kept."""
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
    seconds, token_ids = [], list(prompt)
    for _ in range(num_tokens):
        start = time.perf_counter()
        output = llm.generate([token_ids], params)[0]
        seconds.append(time.perf_counter() - start)
        token_ids += output.completions[0].token_ids
    return seconds, token_ids[len(prompt) :]


def run(context: LabContext) -> LabResult:
    """Generate both ways and compare tokens and times."""
    num_tokens = 112 if context.quick else 240
    with context.llm(enable_prefix_caching=False) as llm:
        prompt = text_tokens(llm, NUM_PROMPT)
        with_cache(llm, prompt, 4)  # touch the memory first
        before_s, cached = with_cache(llm, prompt, num_tokens)
        naive_s, naive = without_cache(llm, prompt, num_tokens)
        after_s, _ = with_cache(llm, prompt, num_tokens)
        naive_s[0] = min(naive_s[0], *(without_cache(llm, prompt, 1)[0][0] for _ in range(2)))
        kv_bytes = kv_bytes_per_token(llm.spec, llm.config.kv_bytes_per_element)
    cached_s = [min(pair) for pair in zip(before_s, after_s, strict=True)]
    marks = [*range(0, num_tokens, max(1, num_tokens // 8)), num_tokens - 1]
    rows = tuple(
        (
            NUM_PROMPT + mark,
            1e3 * cached_s[mark],
            1e3 * naive_s[mark],
            naive_s[mark] / cached_s[mark],
            (NUM_PROMPT + mark) * kv_bytes / 1024,
        )
        for mark in marks
    )
    return LabResult(
        columns=("tokens so far", "ms with cache", "ms without", "times", "cache KiB"),
        rows=rows,
        relations=relations(cached_s, naive_s, cached == naive),
        data={"cached_ms": [1e3 * s for s in cached_s], "naive_ms": [1e3 * s for s in naive_s]},
    )


def relations(cached_s: list[float], naive_s: list[float], same: bool) -> tuple[Relation, ...]:
    """The same tokens, in flat time instead of growing time."""
    early, late = min(naive_s[:WINDOW]), min(naive_s[-WINDOW:])
    cached_late = min(cached_s[-WINDOW:])
    return (
        Relation("both ways give the same tokens", same, f"{len(cached_s)} of them"),
        Relation(
            "without a cache each token takes longer than the one before",
            late > 1.3 * early,
            f"{1e3 * early:.1f} ms at first, {1e3 * late:.1f} ms at the end",
        ),
        Relation(
            "at the end a token takes less than half as long with it",
            cached_late < late / 2,
            f"{1e3 * cached_late:.1f} ms with, {1e3 * late:.1f} ms without",
        ),
        Relation(
            "the whole text is faster with it",
            sum(cached_s) < sum(naive_s),
            f"{sum(naive_s) / sum(cached_s):.1f} times",
        ),
        Relation(
            "the first token gains nothing",
            cached_s[0] > naive_s[0] / 3,
            f"{1e3 * cached_s[0]:.1f} ms with, {1e3 * naive_s[0]:.1f} ms without",
        ),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """Milliseconds of each token, both ways."""
    axes = figure.subplots()
    positions = range(NUM_PROMPT, NUM_PROMPT + len(result.data["cached_ms"]))
    axes.plot(positions, result.data["naive_ms"], label="everything computed anew")
    axes.plot(positions, result.data["cached_ms"], label="with the KV cache")
    axes.set(xlabel="tokens so far", ylabel="ms a token", ylim=(0, None))
    axes.legend()


LLAMA_8B = known_model("Llama-3.1-8B")

LAB = Lab(
    title="What does the KV cache save, and what does it cost?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question=(
                "A model has 16 layers, 4 kv heads, head_dim 64 and a bfloat16 cache. How many KiB does a "
                "token take?"
            ),
            answer=2 * 16 * 4 * 64 * 2 / 1024,
            wrong="8",
            hint="A key and a value: 2 x layers x kv heads x head_dim x 2 bytes, over 1,024.",
            tolerance=0.001,
        ),
        Exercise(
            question="How many tokens of Llama 3.1 8B (bfloat16 cache) fit in 40 GB?",
            answer=40e9 / kv_bytes_per_token(LLAMA_8B, 2),
            wrong="40000",
            hint="128 KiB a token.",
        ),
        Exercise(
            question=(
                "Generating 1,000 tokens after a prompt of 1 without a cache computes how many token "
                "positions in all?"
            ),
            answer=1_000 * 1_001 / 2,
            wrong="1000",
            hint="1 + 2 + ... + 1,000.",
        ),
    ),
)
