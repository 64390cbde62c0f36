"""Lab: what sampling parameters leave of a real distribution, and a text that is the same in any company."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import numpy as np

from ridgeline import SamplingParams
from ridgeline.cli.labs import Exercise, Lab, LabContext, LabResult, Relation, text_tokens
from ridgeline.runtime.philox import uniform
from ridgeline.runtime.sampler import SampleRow, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ridgeline import LLM

PROMPT = "My favourite season of the year is"
TOP = 20
BATCH = 16
SETTINGS = {
    "temperature 1": SamplingParams(),
    "temperature 0.5": SamplingParams(temperature=0.5),
    "temperature 1.5": SamplingParams(temperature=1.5),
    "top_k 5": SamplingParams(top_k=5),
    "top_p 0.8": SamplingParams(top_p=0.8),
    "min_p 0.2": SamplingParams(min_p=0.2),
}


def likeliest(llm: LLM) -> tuple[list[str], np.ndarray]:
    """The 20 likeliest next tokens of the default prompt, and their log probabilities, likeliest first."""
    params = SamplingParams(max_tokens=1, temperature=0, logprobs=TOP)
    logprobs = llm.generate(PROMPT, params)[0].completions[0].logprobs
    assert logprobs is not None
    top = logprobs[0].top
    return [entry.text for entry in top], np.array([entry.logprob for entry in top], np.float32)


def shares(logprobs: np.ndarray, params: SamplingParams) -> np.ndarray:
    """What each token's probability should be, by the definitions; tokens come likeliest first."""
    scaled = np.exp(logprobs.astype(np.float64) / params.temperature)
    kept = scaled / scaled.sum()
    kept = np.where(kept >= params.min_p * kept[0], kept, 0)
    if params.top_k:
        kept[params.top_k :] = 0
    kept /= kept.sum()
    before = np.cumsum(kept) - kept
    kept = np.where(before < params.top_p, kept, 0)
    return np.asarray(kept / kept.sum())


def drawn_shares(logprobs: np.ndarray, params: SamplingParams, num_draws: int) -> np.ndarray:
    """How often the engine's sampler draws each, with a seed of its own for every draw."""
    nothing = np.empty(0, np.int32)
    rows = [SampleRow(params, seed, 0, nothing, 0, nothing) for seed in range(num_draws)]
    tokens = draw(np.tile(logprobs, (num_draws, 1)), rows)
    return np.bincount(tokens, minlength=len(logprobs)) / num_draws


def entropy_bits(probabilities: np.ndarray) -> float:
    """Bits of surprise of one draw."""
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log2(positive)).sum())


def alone_and_together(llm: LLM, num_tokens: int) -> tuple[bool, bool, int]:
    """Whether a seeded request's tokens, and its log probabilities to the bit, survive 15 neighbours."""
    mine = SamplingParams(max_tokens=num_tokens, seed=7, logprobs=0, ignore_eos=True)
    prompts = [llm.tokenizer.encode(PROMPT, False)]
    prompts += [text_tokens(llm, 5 + 9 * i, offset=11 * i) for i in range(1, BATCH)]
    others = [SamplingParams(max_tokens=3 + 2 * i, temperature=0.3 + 0.1 * i) for i in range(1, BATCH)]
    alone = llm.generate(prompts[0], mine)[0].completions[0]
    together = llm.generate(prompts, [mine, *others], progress_bar=False)[0].completions[0]
    assert alone.logprobs is not None and together.logprobs is not None
    bits = [[entry.token.logprob for entry in c.logprobs or ()] for c in (alone, together)]
    return alone.token_ids == together.token_ids, bits[0] == bits[1], len(alone.token_ids)


def neighbour_changes_a_stream() -> tuple[bool, bool]:
    """Does one draw by somebody else change my next number: from a shared generator, and from Philox?"""
    shared = random.Random(7)
    mine = [shared.random() for _ in range(4)]
    shared = random.Random(7)
    disturbed = []
    for _ in range(4):
        disturbed.append(shared.random())
        shared.random()  # the neighbour's
    philox_alone = uniform([7] * 4, range(4))
    philox_beside = uniform([7, 8] * 4, [position for position in range(4) for _ in range(2)])[::2]
    return mine != disturbed, bool((philox_alone != philox_beside).any())


def sums_by_parts(count: int = 4_096) -> dict[int, float]:
    """The same float32 numbers, added up in 1, 2, 4, ... parts that are added at the end."""
    numbers = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    sums = {}
    for parts in (1, 2, 4, 8, 16, 32, 64):
        pieces = [np.add.accumulate(piece)[-1] for piece in np.split(numbers, parts)]
        sums[parts] = float(np.add.accumulate(np.array(pieces, np.float32))[-1])
    return sums


def sampling_share(llm: LLM, params: SamplingParams) -> float:
    """Share of a step that is spent in the sampler, over a generation of 16 requests."""
    seconds = llm.parts.engine.executor.seconds  # type: ignore[attr-defined]
    before = seconds.sample_s, seconds.forward_s
    prompts = [text_tokens(llm, 16, offset=3 * i) for i in range(BATCH)]
    llm.generate(prompts, params, progress_bar=False)
    sample_s, forward_s = seconds.sample_s - before[0], seconds.forward_s - before[1]
    return float(sample_s / (sample_s + forward_s))


def run(context: LabContext) -> LabResult:
    """Distributions of one real next token, then one seeded text in two companies, then what it costs."""
    num_draws = 4_000 if context.quick else 40_000
    num_tokens = 24 if context.quick else 96
    with context.llm(enable_prefix_caching=False) as llm:
        words, logprobs = likeliest(llm)
        same_text, same_bits, length = alone_and_together(llm, num_tokens)
        greedy = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
        sampled = SamplingParams(max_tokens=12, seed=1, ignore_eos=True)
        for params in (greedy, sampled):
            sampling_share(llm, params)
        cost = {"greedy": sampling_share(llm, greedy), "sampled": sampling_share(llm, sampled)}
    expected = {name: shares(logprobs, params) for name, params in SETTINGS.items()}
    drawn = {name: drawn_shares(logprobs, params, num_draws) for name, params in SETTINGS.items()}
    return LabResult(
        columns=("setting", "tokens left", "likeliest %", "entropy, bits", "drawn apart by %"),
        rows=tuple(
            (
                name,
                int((p > 0).sum()),
                100 * p[0],
                entropy_bits(p),
                100 * float(np.abs(p - drawn[name]).max()),
            )
            for name, p in expected.items()
        ),
        relations=(
            *distribution_relations(expected, drawn, num_draws),
            Relation("the same seed gives the same text alone and among 16", same_text, f"{length} tokens"),
            Relation("and the same log probabilities, bit for bit", same_bits, f"{length} of them"),
            *arithmetic_relations(sums_by_parts()),
            Relation(
                "drawing is a small part of a step",
                cost["sampled"] < 0.15,
                f"{100 * cost['sampled']:.0f}% of a step of {BATCH}, greedy {100 * cost['greedy']:.0f}%",
            ),
        ),
        data={
            "words": words,
            "expected": {name: p.tolist() for name, p in expected.items()},
            "sampler_share": cost,
        },
    )


def distribution_relations(
    expected: dict[str, np.ndarray], drawn: dict[str, np.ndarray], num_draws: int
) -> tuple[Relation, ...]:
    """Temperature spreads, truncation cuts, and the sampler does what the definitions say."""
    cold, plain, hot = (entropy_bits(expected[f"temperature {t}"]) for t in ("0.5", "1", "1.5"))
    apart = max(float(np.abs(expected[name] - drawn[name]).max()) for name in expected)
    outside = sum(float(drawn[name][expected[name] == 0].sum()) for name in expected)
    allowed = 4 * math.sqrt(0.25 / num_draws)
    return (
        Relation(
            "entropy grows with temperature", cold < plain < hot, f"{cold:.2f} < {plain:.2f} < {hot:.2f} bits"
        ),
        Relation(
            "the sampler draws each token as often as the definitions say",
            apart < allowed,
            f"apart by {100 * apart:.2f}% at most, {num_draws:,} draws allow {100 * allowed:.2f}%",
        ),
        Relation("and never one that was cut off", outside == 0, f"{outside:g} of all draws"),
    )


def arithmetic_relations(sums: dict[int, float]) -> tuple[Relation, ...]:
    """Where the two usual causes of other texts come from."""
    shared_moves, philox_moves = neighbour_changes_a_stream()
    return (
        Relation(
            "a neighbour's draw changes my numbers from a shared generator, not those of Philox",
            shared_moves and not philox_moves,
            "Philox computes them from (seed, position)",
        ),
        Relation(
            "the same numbers added in other groups give other sums",
            len(set(sums.values())) > 1,
            f"{len(set(sums.values()))} sums in float32, for {len(sums)} ways to split 4,096 numbers",
        ),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """Probabilities of the likeliest tokens, by temperature and by truncation."""
    by_temperature, by_cut = figure.subplots(1, 2, sharey=True)
    words = [word.strip() or repr(word) for word in result.data["words"][:8]]
    panels = (
        (by_temperature, ("temperature 0.5", "temperature 1", "temperature 1.5")),
        (by_cut, ("top_k 5", "top_p 0.8", "min_p 0.2")),
    )
    for axes, names in panels:
        for i, name in enumerate(names):
            at = np.arange(len(words)) + 0.27 * (i - 1)
            axes.bar(at, [100 * p for p in result.data["expected"][name][:8]], width=0.27, label=name)
        axes.set_xticks(range(len(words)), words, rotation=40, ha="right", fontsize=8)
        axes.legend(fontsize=8)
    by_temperature.set(ylabel="probability, %", title="temperature")
    by_cut.set(title="truncation at temperature 1")
    figure.supxlabel(f"next token after “{PROMPT}”", fontsize=9)


LAB = Lab(
    title="What do the sampling parameters leave to draw from, and when is a text repeatable?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question=(
                "Two tokens have probabilities 80% and 20% at temperature 1. What is the first one's at "
                "temperature 0.5, in percent?"
            ),
            answer=0.64 / 0.68,
            wrong="80%",
            hint="Dividing logits by 0.5 squares the probabilities; then make them add up to 1.",
        ),
        Exercise(
            question=("Probabilities 50%, 25%, 15%, 7%, 3%. How many tokens does top_p 0.8 leave?"),
            answer=3,
            wrong="2",
            hint="The smallest set that reaches 80%.",
            tolerance=0.001,
        ),
        Exercise(
            question="And min_p 0.2?",
            answer=3,
            wrong="4",
            hint="Those at least 0.2 x 50% likely.",
            tolerance=0.001,
        ),
    ),
)
