"""Lab: the engine's decode and prefill steps under this machine's measured roof; the same for a GPU.

One thread for the roof and for the engine. Operations and bytes are those of `ridgeline roofline`
(cost/roofline.py), and so are the kernels that measure the roof.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

from ridgeline import SamplingParams
from ridgeline.cli.lab_models import known_model
from ridgeline.cli.labs import (
    Exercise,
    Lab,
    LabContext,
    LabResult,
    Relation,
    decode_step_s,
    text_tokens,
    token_times,
)
from ridgeline.cost.roofline import Ceilings, Operation, Phase, attainable, step_operations
from ridgeline.runtime.native.measure import measure_ceilings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ridgeline import LLM

PROMPT_TOKENS = 16
MEMORY_BYTES = 1 << 27
H100_BYTES_PER_S, H100_OPERATIONS_PER_S = 3.35e12, 989e12
"""HBM3 and dense bf16 of the SXM version (NVIDIA's data sheet)."""
H100_STEPS: tuple[tuple[Phase, int], ...] = (("decode", 1), ("decode", 64), ("decode", 512), ("prefill", 1))
H100_CONTEXT = 2_000


@dataclass(frozen=True)
class Point:
    """One kind of step on the plot."""

    name: str
    tokens: int
    operations: int
    num_bytes: int
    seconds: float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.num_bytes

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def operations_per_s(self) -> float:
        return self.operations / self.seconds


def prefill_s(llm: LLM, num_tokens: int) -> float:
    """Seconds to the first token of a prompt."""
    params = SamplingParams(max_tokens=1, temperature=0)
    return token_times(llm, text_tokens(llm, num_tokens), params)[0][0]


def operations_of(
    llm: LLM, ceilings: Ceilings, phase: Phase, batch: int, context: int
) -> tuple[Operation, ...]:
    """What a step of the lab's engine computes and reads."""
    return step_operations(
        llm.spec,
        phase,
        batch=batch,
        context=context,
        weights=llm.config.weights,
        head_weights=llm.config.head_weights,
        kv_bytes_per_element=llm.config.kv_bytes_per_element,
        units=ceilings.units(1),
    )


def point(name: str, tokens: int, operations: tuple[Operation, ...], seconds: float) -> Point:
    """A whole step as one point."""
    return Point(
        name, tokens, sum(o.operations for o in operations), sum(o.num_bytes for o in operations), seconds
    )


def on_h100(phase: Phase, batch: int) -> Point:
    """A step of Llama 3.1 8B in bf16 at 2,000 tokens of context: seconds are the floor of its operations."""
    operations = step_operations(
        known_model("Llama-3.1-8B"), phase, batch=batch, context=H100_CONTEXT, weights="bf16",
        head_weights="bf16", kv_bytes_per_element=2, units=(),
    )  # fmt: skip
    seconds = sum(
        max(o.num_bytes / H100_BYTES_PER_S, o.operations / H100_OPERATIONS_PER_S) for o in operations
    )
    tokens = batch if phase == "decode" else batch * H100_CONTEXT
    return point(f"H100, {phase} of {tokens:,}", tokens, operations, seconds)


def run(context: LabContext) -> LabResult:
    """The roof, then decode steps of growing batches and a prefill, in turns; then the GPU by arithmetic."""
    batches = (1, 4, 64) if context.quick else (1, 2, 4, 8, 16, 32, 64)
    rounds, num_prefill = (2, 256) if context.quick else (5, 512)
    roofs = [measure_ceilings([1], [MEMORY_BYTES], repeats=3)]
    options = {"max_num_batched_tokens": 512, "max_num_seqs": max(batches)}
    with context.llm(num_threads=1, enable_prefix_caching=False, **options) as llm:
        steps: dict[int, list[float]] = {batch: [] for batch in batches}
        prefills = []
        for _ in range(rounds):
            prefills.append(prefill_s(llm, num_prefill))
            for batch in batches:
                steps[batch].append(decode_step_s(llm, batch, 8, PROMPT_TOKENS))
        roofs.append(measure_ceilings([1], [MEMORY_BYTES], repeats=3))
        seen = PROMPT_TOKENS + 4
        points = [
            point(f"decode of {b}", b, operations_of(llm, roofs[0], "decode", b, seen), median(steps[b]))
            for b in batches
        ]
        prompt = operations_of(llm, roofs[0], "prefill", 1, num_prefill)
        points.append(point(f"prefill of {num_prefill}", num_prefill, prompt, median(prefills)))
        unit = max(prompt, key=lambda operation: operation.operations).unit
    bandwidth = max(roof.bytes_per_s(1, MEMORY_BYTES) for roof in roofs)  # noise only lowers a roof
    peak = max(roof.operations_per_s(1, unit) for roof in roofs)
    gpu = [on_h100(phase, batch) for phase, batch in H100_STEPS]
    rows = [(p, attainable(p.intensity, bandwidth, peak)) for p in points]
    return LabResult(
        columns=("step", "operations/byte", "tokens/s", "Gop/s", "roof, Gop/s", "of the roof %"),
        rows=(
            *(
                (
                    p.name,
                    p.intensity,
                    p.tokens_per_s,
                    p.operations_per_s / 1e9,
                    roof / 1e9,
                    100 * p.operations_per_s / roof,
                )
                for p, roof in rows
            ),
            *(
                (f"{p.name} (floor)", p.intensity, p.tokens_per_s, p.operations_per_s / 1e9, "", "")
                for p in gpu
            ),
        ),
        relations=(*engine_relations(points, bandwidth, peak), *gpu_relations(gpu)),
        data={
            "bytes_per_s": bandwidth,
            "operations_per_s": peak,
            "unit": unit,
            "points": {p.name: asdict(p) for p in points},
        },
    )


def engine_relations(points: list[Point], bandwidth: float, peak: float) -> tuple[Relation, ...]:
    """One request lies under the sloping roof; a batch climbs along it and leaves it."""
    one, most, prefill = points[0], points[-2], points[-1]
    gain = most.tokens_per_s / one.tokens_per_s
    above = max(p.operations_per_s / attainable(p.intensity, bandwidth, peak) for p in points)
    return (
        Relation(
            "decode of one request lies left of the ridge",
            one.intensity < peak / bandwidth,
            f"{one.intensity:.1f} operations a byte, the ridge is at {peak / bandwidth:.0f}",
        ),
        Relation(
            "a batch gives more tokens a second, but not in proportion",
            1.5 < gain < 0.75 * most.tokens,
            f"{gain:.1f} times for {most.tokens} requests",
        ),
        Relation(
            "the larger the batch, the less is left of the memory's speed",
            most.num_bytes / most.seconds < 0.8 * one.num_bytes / one.seconds,
            f"{one.num_bytes / one.seconds / 1e9:.1f} GB/s for 1, "
            f"{most.num_bytes / most.seconds / 1e9:.1f} for {most.tokens}; the roof is {bandwidth / 1e9:.1f}",
        ),
        Relation(
            "prefill does far more operations a second than decode of one",
            prefill.operations_per_s > 3 * one.operations_per_s,
            f"{prefill.operations_per_s / 1e9:,.0f} and {one.operations_per_s / 1e9:,.0f} Gop/s",
        ),
        Relation(
            "no step is above the roof by more than the noise of measuring it",
            above < 1.5,
            f"the nearest reaches {100 * above:.0f}%",
        ),
    )


def gpu_relations(gpu: list[Point]) -> tuple[Relation, ...]:
    """The same split on a GPU; the cache keeps a large batch left of the ridge."""
    ridge = H100_OPERATIONS_PER_S / H100_BYTES_PER_S
    one, _, many, prefill = gpu
    return (
        Relation(
            "on an H100 decode of one is left of the ridge and a prompt of 2,000 tokens right of it",
            one.intensity < ridge < prefill.intensity,
            f"{one.intensity:.1f} and {prefill.intensity:,.0f} operations a byte, ridge {ridge:.0f}",
        ),
        Relation(
            "with contexts of 2,000 not even 512 requests reach it: each brings a cache of its own",
            many.intensity < ridge,
            f"{many.intensity:.0f} operations a byte",
        ),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """The roof with the steps under it; tokens a second by batch against the memory's roof."""
    roof, tokens = figure.subplots(1, 2)
    bandwidth, peak = result.data["bytes_per_s"], result.data["operations_per_s"]
    points = [Point(**fields) for fields in result.data["points"].values()]
    decode, prefill = points[:-1], points[-1:]
    ends = [0.5, peak / bandwidth, 4 * max(peak / bandwidth, *(p.intensity for p in points))]
    roof.plot(ends, [attainable(x, bandwidth, peak) / 1e9 for x in ends], color="black", label="the roof")
    for name, chosen in (("decode", decode), ("prefill", prefill)):
        gops = [p.operations_per_s / 1e9 for p in chosen]
        roof.plot([p.intensity for p in chosen], gops, marker="o", label=name)
    for p in (decode[0], decode[-1], *prefill):
        at = (p.intensity, p.operations_per_s / 1e9)
        roof.annotate(str(p.tokens), at, (4, -12), textcoords="offset points")
    roof.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="Gop/s", title="one thread")
    roof.legend(fontsize=8, loc="lower right")
    batches = [p.tokens for p in decode]
    limits = [attainable(p.intensity, bandwidth, peak) * p.tokens / p.operations for p in decode]
    tokens.plot(batches, limits, color="black", label="the roof")
    tokens.plot(batches, [p.tokens_per_s for p in decode], marker="o", label="measured")
    tokens.set(xscale="log", yscale="log", xlabel="requests in the step", ylabel="tokens/s", title="decode")
    tokens.set_xticks(batches, [str(batch) for batch in batches])
    tokens.minorticks_off()
    tokens.legend(fontsize=8)


LAB = Lab(
    title="Which steps wait for memory, which for arithmetic, and where is the ridge between them?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question="An A100: 312 Tflop/s in bf16, 2.04 TB/s. At how many operations a byte is its ridge?",
            answer=312 / 2.04,
            wrong="295",
            hint="Peak over bandwidth.",
        ),
        Exercise(
            question=(
                "Weights of half a byte, each used for one multiply and one add a token: how many tokens "
                "does a step need to reach a ridge of 295, if nothing else is read?"
            ),
            answer=295 / 4,
            wrong="295",
            hint="Two operations over half a byte are 4 operations a byte and token.",
        ),
        Exercise(
            question=(
                "Llama 3.1 8B reads 15.0 GB of weights a step and 0.262 GB of cache a request. How many "
                "tokens a second do 64 requests get at most at 3.35 TB/s?"
            ),
            answer=64 * 3350 / (15.0 + 64 * 0.262),
            wrong="223",
            hint="64 tokens every (15.0 + 64 x 0.262) / 3,350 s.",
        ),
    ),
)
