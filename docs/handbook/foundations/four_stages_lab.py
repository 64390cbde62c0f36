"""Lab: one request through tokenize, prefill, decode and detokenize, each stage timed on the real engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ridgeline import SamplingParams
from ridgeline.cli.labs import Exercise, Lab, LabContext, LabResult, Relation, text_tokens, token_times

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ridgeline import LLM

NUM_PROMPT, NUM_GENERATED = 256, 64


def best_s(work: Callable[[], object], repeats: int = 3) -> float:
    """Least seconds of several calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def generation_s(llm: LLM, num_prompt: int, num_generated: int) -> list[float]:
    """Seconds to each generated token, of the faster of two runs over prompts of that length."""
    params = SamplingParams(max_tokens=num_generated, temperature=0, ignore_eos=True)
    runs = [token_times(llm, text_tokens(llm, num_prompt, offset), params)[0] for offset in (0, 7)]
    return min(runs, key=lambda times: times[-1])


def run(context: LabContext) -> LabResult:
    """Time the four stages of one request, then the first token for prompts of growing length."""
    num_generated = NUM_GENERATED // 2 if context.quick else NUM_GENERATED
    lengths = (32, 512) if context.quick else (2, 8, 32, 128, 512, 2_048)
    with context.llm(enable_prefix_caching=False) as llm:
        generation_s(llm, 16, 4)  # the first call touches memory that no later call must
        prompt = text_tokens(llm, NUM_PROMPT)
        text = llm.tokenizer.decode(prompt)
        times = generation_s(llm, NUM_PROMPT, num_generated)
        seconds = {
            "tokenize": best_s(lambda: llm.tokenizer.encode(text, False)),
            "prefill": times[0],
            "decode": times[-1] - times[0],
            "detokenize": best_s(lambda: llm.tokenizer.decode(prompt[:num_generated])),
        }
        ttft_s = {length: generation_s(llm, length, 1)[0] for length in lengths}
    tokens = {
        "tokenize": NUM_PROMPT,
        "prefill": NUM_PROMPT,
        "decode": num_generated - 1,
        "detokenize": num_generated,
    }
    total = sum(seconds.values())
    return LabResult(
        columns=("stage", "tokens", "ms", "us a token", "share %"),
        rows=tuple(
            (stage, tokens[stage], 1e3 * s, 1e6 * s / tokens[stage], 100 * s / total)
            for stage, s in seconds.items()
        ),
        relations=relations(seconds, tokens, ttft_s),
        data={"seconds": seconds, "ttft_s": {str(length): value for length, value in ttft_s.items()}},
    )


def relations(
    seconds: dict[str, float], tokens: dict[str, int], ttft_s: dict[int, float]
) -> tuple[Relation, ...]:
    """What the chapter claims, from the measured times."""
    prefill_us = 1e6 * seconds["prefill"] / tokens["prefill"]
    decode_us = 1e6 * seconds["decode"] / tokens["decode"]
    text = seconds["tokenize"] + seconds["detokenize"]
    total = sum(seconds.values())
    shortest, longest = min(ttft_s), max(ttft_s)
    return (
        Relation(
            "a prompt token costs less than half of a generated one",
            2 * prefill_us < decode_us,
            f"{prefill_us:.0f} us and {decode_us:.0f} us",
        ),
        Relation(
            "the two text stages take less than a tenth of the time",
            text < total / 10,
            f"{100 * text / total:.2f}%",
        ),
        Relation(
            "the first token comes later after a longer prompt",
            ttft_s[longest] > ttft_s[shortest],
            f"{1e3 * ttft_s[shortest]:.0f} ms at {shortest}, {1e3 * ttft_s[longest]:.0f} ms at {longest} "
            f"tokens",
        ),
        Relation(
            "a prompt of 32 tokens takes less than 16 decode steps: it shares one pass",
            1e6 * ttft_s[32] < 16 * decode_us,
            f"{1e6 * ttft_s[32] / decode_us:.1f} steps",
        ),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """The stages' shares, and the time to the first token against the prompt's length."""
    stages, first = figure.subplots(1, 2)
    seconds = result.data["seconds"]
    stages.barh(list(seconds), [1e3 * value for value in seconds.values()], color="tab:gray")
    stages.invert_yaxis()
    stages.set(xscale="log", xlabel="ms (logarithmic)", title="one request")
    ttft = {int(length): 1e3 * value for length, value in result.data["ttft_s"].items()}
    first.plot(list(ttft), list(ttft.values()), marker="o")
    first.set(
        xscale="log", yscale="log", xlabel="prompt tokens", ylabel="ms to the first token", title="prefill"
    )


LAB = Lab(
    title="Where does the time of one request go?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question=(
                "A request has a prompt of 2,000 tokens and an answer of 500. The prompt is one prefill of "
                "300 ms, and a decode step takes 10 ms. Seconds until the last token?"
            ),
            answer=0.3 + 499 * 0.010,
            wrong="25.3",
            hint="Prefill gives the first token; 499 steps give the others.",
            tolerance=0.005,
        ),
        Exercise(
            question=(
                "Users complain that answers start late, but then stream fast. Which stage do you look at "
                "first?"
            ),
            answer=("prefill",),
            wrong="decode",
            hint="What happens before the first token?",
        ),
        Exercise(
            question="Which stage repeats the same work shape for each token of the answer?",
            answer=("decode",),
            wrong="tokenize",
            hint="One token in, one token out, every step.",
        ),
    ),
)
