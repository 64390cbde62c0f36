"""Lab: four requests are streaming when a long prompt arrives; how long do they stand still?

One loaded model under several schedulers: the executor does not care who plans, so only the token budget of a
step differs between the runs.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from ridgeline import SamplingParams
from ridgeline.cli.labs import Exercise, Lab, LabContext, LabResult, Relation, text_tokens
from ridgeline.core.event import Arrived, Event, TokensGenerated
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler
from ridgeline.engine.clock import MonotonicClock
from ridgeline.engine.engine import Engine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ridgeline import LLM

NUM_STREAMS = 4
WHOLE = 2_048
"""A budget that takes the prompt in one step."""

_numbers = itertools.count()


@dataclass(frozen=True)
class Arrival:
    """Seconds, all from the arrival of the long prompt, and every token that was generated."""

    first_token_s: float
    gaps_s: list[float]
    usual_gap_s: float
    times_s: list[float]
    tokens: tuple[tuple[int, ...], ...]

    @property
    def worst_gap_s(self) -> float:
        return max(self.gaps_s)


def requests_of(llm: LLM, prompt: list[int], max_tokens: int) -> tuple[Request, ...]:
    """Core requests with ids never used before."""
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    return llm.parts.intake.job(f"lab-{next(_numbers)}", tuple(prompt), params).requests


def arrive(llm: LLM, budget: int, num_prompt: int) -> Arrival:
    """Let four requests stream, add the long prompt, and step until its first tokens are there."""
    config = dataclasses.replace(llm.parts.engine.scheduler.config, max_num_batched_tokens=budget)
    engine = Engine(Scheduler(config), llm.parts.engine.executor, MonotonicClock())
    # Enough tokens for every chunk of the prompt to meet all streams, and a few beyond.
    lasts = 12 + -(-num_prompt // (budget - NUM_STREAMS)) + 8
    streams = [
        request
        for i in range(NUM_STREAMS)
        for request in requests_of(llm, text_tokens(llm, 8, offset=7 * i), lasts)
    ]
    (long,) = requests_of(llm, text_tokens(llm, num_prompt), 4)
    events: list[Event] = []
    for stream in streams:
        events += engine.add(stream)
    while tokens_of(events, streams[-1]) < 10:
        events += engine.step()
    before = len(events)
    events += engine.add(long)
    while engine.has_work():
        events += engine.step()
    return read(events, before, streams, long)


def tokens_of(events: list[Event], request: Request) -> int:
    """Tokens that a request has generated so far."""
    return sum(isinstance(e, TokensGenerated) and e.request_id == request.id for e in events)


def read(events: list[Event], before: int, streams: list[Request], long: Request) -> Arrival:
    """Fold the events: gaps of the first stream around the arrival, and the prompt's first token."""
    watched = streams[0].id
    times = [e.time_s for e in events if isinstance(e, TokensGenerated) and e.request_id == watched]
    arrived_s = next(e.time_s for e in events[before:] if isinstance(e, Arrived))
    first_s = next(e.time_s for e in events if isinstance(e, TokensGenerated) and e.request_id == long.id)
    gaps = [(after, after - earlier) for earlier, after in itertools.pairwise(times)]
    tokens: dict[str, tuple[int, ...]] = {}
    for event in events:
        if isinstance(event, TokensGenerated):
            tokens[event.request_id] = (*tokens.get(event.request_id, ()), *event.tokens)
    return Arrival(
        first_token_s=first_s - arrived_s,
        gaps_s=[gap for end, gap in gaps if arrived_s < end <= first_s],
        usual_gap_s=median(gap for end, gap in gaps[1:] if end <= arrived_s),
        times_s=[time - arrived_s for time in times],
        tokens=tuple(tokens[request.id][:12] for request in (*streams, long)),
    )


def run(context: LabContext) -> LabResult:
    """The same arrival under each budget, several times in turn."""
    num_prompt = 512 if context.quick else 1_024
    budgets = (WHOLE, 64, 16) if context.quick else (WHOLE, 512, 256, 128, 64, 32, 16)
    seen: dict[int, list[Arrival]] = {budget: [] for budget in budgets}
    with context.llm(enable_prefix_caching=False, max_num_batched_tokens=WHOLE, max_num_seqs=8) as llm:
        arrive(llm, WHOLE, 64)
        for _ in range(2 if context.quick else 3):
            for budget in budgets:
                seen[budget].append(arrive(llm, budget, num_prompt))
    worst = {b: min(a.worst_gap_s for a in arrivals) for b, arrivals in seen.items()}
    first = {b: min(a.first_token_s for a in arrivals) for b, arrivals in seen.items()}
    usual = {b: median(a.usual_gap_s for a in arrivals) for b, arrivals in seen.items()}
    same = len({arrivals[0].tokens for arrivals in seen.values()}) == 1
    return LabResult(
        columns=(
            "budget, tokens",
            "steps for the prompt",
            "usual gap ms",
            "worst gap ms",
            "its first token ms",
        ),
        rows=tuple(
            (
                b,
                -(-num_prompt // (b - NUM_STREAMS)),
                1e3 * usual[b],
                1e3 * worst[b],
                1e3 * first[b],
            )
            for b in budgets
        ),
        relations=relations(worst, first, same, num_prompt),
        data={
            "prompt_tokens": num_prompt,
            "worst_gap_ms": {str(b): 1e3 * s for b, s in worst.items()},
            "first_token_ms": {str(b): 1e3 * s for b, s in first.items()},
            "stream_ms": {
                str(b): [1e3 * t for t in min(seen[b], key=lambda a: a.worst_gap_s).times_s]
                for b in (WHOLE, 64)
            },
        },
    )


def relations(
    worst: dict[int, float], first: dict[int, float], same: bool, num_prompt: int
) -> tuple[Relation, ...]:
    """Short steps keep streams going; the prompt pays for it."""
    least = min(worst)
    return (
        Relation(
            "in chunks of 64 the streams stand still for less than half as long",
            2 * worst[64] < worst[WHOLE],
            f"{1e3 * worst[64]:.0f} ms at worst, {1e3 * worst[WHOLE]:.0f} ms with {num_prompt} tokens whole",
        ),
        Relation(
            "but the long prompt's own first token comes later, at the smallest budget",
            first[least] > 1.1 * first[WHOLE],
            f"{1e3 * first[least]:.0f} ms in steps of {least}, {1e3 * first[WHOLE]:.0f} ms whole",
        ),
        Relation(
            "shorter steps are not shorter in proportion: each reads the weights",
            worst[least] / worst[64] > least / 64,
            f"{100 * least / 64:.0f}% of the tokens, {100 * worst[least] / worst[64]:.0f}% of the gap",
        ),
        Relation("every budget gives the same tokens", same, f"to {NUM_STREAMS} streams and the long prompt"),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """When one stream's tokens come, whole and in chunks; worst gap and first token against the budget."""
    stream, trade = figure.subplots(1, 2)
    for budget, label in ((WHOLE, "prompt in one step"), (64, "64 tokens a step")):
        times = [t for t in result.data["stream_ms"][str(budget)] if t > -200]
        stream.plot(times, range(len(times)), marker=".", label=label)
    stream.axvline(0, color="tab:gray", linestyle=":")
    stream.set(
        xlabel="ms after the long prompt arrived",
        ylabel="tokens of one stream",
        title="a stream",
        ylim=(0, None),
    )
    stream.legend(fontsize=8)
    for key, label in (
        ("first_token_ms", "first token of the prompt"),
        ("worst_gap_ms", "worst gap of a stream"),
    ):
        values = {int(b): ms for b, ms in result.data[key].items()}
        trade.plot(list(values), list(values.values()), marker="o", label=label)
    trade.set(
        xscale="log",
        yscale="log",
        xlabel="tokens a step (budget)",
        ylabel="ms",
        title="the price of smoothness",
    )
    trade.set_xticks(list(values), [f"{budget:,}" for budget in values], fontsize=8)
    trade.minorticks_off()
    trade.legend(fontsize=8)


LAB = Lab(
    title="How long do running streams stand still when a long prompt arrives?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question=(
                "A decode step takes 10 ms, a prompt token 0.02 ms more. A prompt of 8,000 tokens arrives. "
                "How long is the worst gap of the streams in ms, if it goes whole?"
            ),
            answer=170,
            wrong="160",
            hint="The step that computes the prompt also computes the streams' own tokens.",
        ),
        Exercise(
            question="And in chunks of 500 tokens?",
            answer=20,
            wrong="10",
            hint="10 ms and 500 x 0.02 ms.",
        ),
        Exercise(
            question="In those chunks of 500, when is the prompt's first token there, in ms?",
            answer=320,
            wrong="170",
            hint="8,000 / 500 steps of 20 ms each.",
        ),
    ),
)
