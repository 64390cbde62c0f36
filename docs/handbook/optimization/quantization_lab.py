"""Lab: real weight matrices rounded by several schemes, and the engine at each of its precisions.

First numpy: the error of each scheme on matrices of the default model, and of rounding activations as
well. Then the engine: how far its predictions are from the float32 reference on one text, and its speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ridgeline import SamplingParams
from ridgeline.cli.lab_models import known_model
from ridgeline.cli.labs import Exercise, Lab, LabContext, LabResult, Relation, text_tokens, token_times
from ridgeline.engine.build import prepare
from ridgeline.engine.options import EngineOptions
from ridgeline.engine.source import read_header, read_spec, resolve_source
from ridgeline.facts.formulas import parameter_counts, weight_bytes
from ridgeline.runtime.weights import open_tensors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ridgeline import LLM

Array = npt.NDArray[np.float32]

TABLE = "model.embed_tokens.weight"
MATRIX = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
LAST_NORM = "model.norm.weight"
TABLE_ROWS = 4_096
DEFAULT = "default"
ENGINES: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "bf16": {"weights": "bf16"},
    "int8": {"weights": "int8"},
    "int4": {"weights": "int4"},
}


def symmetric(values: Array, bits: int) -> Array:
    """Each row of `[n, group]` in whole steps on both sides of 0; the largest is the last step."""
    steps = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-12) / steps
    rounded: Array = np.round(values / scale) * scale
    return rounded


def asymmetric(values: Array, bits: int) -> Array:
    """Each row rounded to 2^bits steps between its smallest and its largest value."""
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    scale = np.maximum(high - low, 1e-12) / (2**bits - 1)
    rounded: Array = np.round((values - low) / scale) * scale + low
    return rounded


@dataclass(frozen=True)
class Scheme:
    """How values are rounded: which share a scale (0: all, -1: a row, n: n neighbours), and onto what."""

    name: str
    bits: int
    group: int
    rounding: Callable[[Array, int], Array]

    def apply(self, matrix: Array) -> Array:
        """`matrix` as it comes back."""
        width = matrix.size if self.group == 0 else matrix.shape[1] if self.group < 0 else self.group
        return self.rounding(matrix.reshape(-1, width), self.bits).reshape(matrix.shape)

    def bits_a_weight(self, matrix: Array) -> float:
        """Bits with the scales: 16 each, and 16 more for a minimum."""
        width = matrix.size if self.group == 0 else matrix.shape[1] if self.group < 0 else self.group
        return self.bits + (32 if self.rounding is asymmetric else 16) / width


SCHEMES = (
    Scheme("int8, one scale", 8, 0, symmetric),
    Scheme("int8, a scale a row", 8, -1, symmetric),
    Scheme("int8, groups of 32", 8, 32, symmetric),
    Scheme("int4, one scale", 4, 0, symmetric),
    Scheme("int4, a scale a row", 4, -1, symmetric),
    Scheme("int4, groups of 128", 4, 128, symmetric),
    Scheme("int4, groups of 32", 4, 32, symmetric),
    Scheme("int4, groups of 32 with minimum", 4, 32, asymmetric),
)


def error_of(given: Array, true: Array) -> float:
    """Root mean square of the difference, relative to that of `true`."""
    return float(np.linalg.norm(given - true) / np.linalg.norm(true))


@dataclass(frozen=True)
class Matrices:
    """Real numbers of the model.

    `head`: rows of the output head with the norm before it folded in, which takes them off the grid on
    which the file stores them. `matrix`: the first layer's q matrix as stored. `activations`: its input.
    """

    head: Array
    matrix: Array
    activations: Array


def read_matrices(context: LabContext, prompt: list[int]) -> Matrices:
    """From the model's file. The activations are exact: the first layer's for `prompt`."""
    source = resolve_source(context.model)
    header = read_header(source)
    spec = read_spec(source, header)
    stream = open_tensors(source, spec, header)
    table, last = stream.take(TABLE).float32(), stream.take(LAST_NORM).float32()
    matrix, norm = stream.take(MATRIX).float32(), stream.take(NORM).float32()
    hidden = table[prompt]
    normal = hidden / np.sqrt((hidden**2).mean(axis=1, keepdims=True) + spec.rms_norm_eps) * norm
    return Matrices(table[:: len(table) // TABLE_ROWS] * last, matrix, normal.astype(np.float32))


@dataclass(frozen=True)
class Measured:
    """The engine at one precision: bytes of the weights, seconds a step, and its view of a text."""

    num_bytes: int
    step_s: float
    logprobs: list[float]
    best: list[int]


def view_of(llm: LLM, prompt: list[int]) -> tuple[list[float], list[int]]:
    """The logarithm of each token's probability, and the likeliest token at each place."""
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)
    found = [entry for entry in llm.generate([prompt], params)[0].prompt_logprobs or () if entry is not None]
    return [entry.token.logprob for entry in found], [entry.top[0].token_id for entry in found]


def step_s(llm: LLM) -> float:
    """Median seconds of a decode step of one request."""
    params = SamplingParams(max_tokens=10, temperature=0, ignore_eos=True)
    times, _ = token_times(llm, text_tokens(llm, 16), params)
    return median(after - before for before, after in pairwise(times))


def measure_engine(context: LabContext) -> tuple[dict[str, Measured], list[int]]:
    """The reference and every precision, with the text that they read."""
    num_tokens, rounds = (64, 3) if context.quick else (120, 12)
    measured: dict[str, Measured] = {}
    with context.llm(backend="reference", num_blocks=64) as llm:
        prompt = text_tokens(llm, num_tokens)
        size = weight_bytes(llm.spec, "float32", "float32")
        measured["float32"] = Measured(size, math.nan, *view_of(llm, prompt))
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(
                context.llm(backend="native", num_blocks=64, enable_prefix_caching=False, **options)
            )
            for name, options in ENGINES.items()
        }
        steps: dict[str, list[float]] = {name: [] for name in ENGINES}
        for _ in range(rounds):
            for name, llm in engines.items():
                steps[name].append(step_s(llm))
        for name, llm in engines.items():
            size = weight_bytes(llm.spec, llm.config.weights, llm.config.head_weights)
            measured[name] = Measured(size, median(steps[name]), *view_of(llm, prompt))
    return measured, prompt


def run(context: LabContext) -> LabResult:
    """Schemes on the head and on a matrix, rounded activations, then the engine's precisions."""
    engine, prompt = measure_engine(context)
    default = prepare(EngineOptions(model=context.model, backend="native", num_blocks=64)).config.weights
    found = read_matrices(context, prompt)
    errors = {
        scheme.name: (
            scheme.bits_a_weight(found.head),
            error_of(scheme.apply(found.head), found.head),
            error_of(scheme.apply(found.matrix), found.matrix),
        )
        for scheme in SCHEMES
    }
    exact = found.activations @ found.matrix.T
    products = {
        bits: error_of(symmetric(found.activations, bits) @ found.matrix.T, exact) for bits in (8, 16)
    }
    truth = engine["float32"]
    drift = {
        name: (
            float(np.mean(np.abs(np.subtract(m.logprobs, truth.logprobs)))),
            sum(a == b for a, b in zip(m.best, truth.best, strict=True)) / len(truth.best),
        )
        for name, m in engine.items()
    }
    return LabResult(
        columns=(
            "what",
            "bits a weight",
            "error %, head",
            "error %, q as stored",
            "logprob off by",
            "same token %",
            "ms",
        ),
        rows=(
            *((name, bits, 100 * a, 100 * b, "", "", "") for name, (bits, a, b) in errors.items()),
            *(
                (f"activations in {bits} bits", "", "", 100 * error, "", "", "")
                for bits, error in products.items()
            ),
            *(
                (
                    f"engine, {name}" + (f": {default}" if name == DEFAULT else ""),
                    8 * m.num_bytes / (truth.num_bytes / 4),
                    "",
                    "",
                    drift[name][0],
                    100 * drift[name][1],
                    "" if math.isnan(m.step_s) else 1e3 * m.step_s,
                )
                for name, m in engine.items()
            ),
        ),
        relations=(*scheme_relations(errors, products), *engine_relations(engine, drift)),
        data={
            "errors": {name: {"bits": bits, "head": a, "matrix": b} for name, (bits, a, b) in errors.items()},
            "engine": {
                name: {
                    "bytes": engine[name].num_bytes,
                    "step_ms": 1e3 * engine[name].step_s,
                    "off": drift[name][0],
                }
                for name in ENGINES
            },
        },
    )


def scheme_relations(
    errors: dict[str, tuple[float, float, float]], products: dict[int, float]
) -> tuple[Relation, ...]:
    """Finer scales, smaller error; four bits less, sixteen times the step."""
    head = {name: error for name, (_, error, _) in errors.items()}
    ladder = [
        [head[f"{kind}, {scope}"] for scope in ("one scale", "a scale a row", "groups of 32")]
        for kind in ("int8", "int4")
    ]
    ratio = head["int4, groups of 32"] / head["int8, groups of 32"]
    stored = min(error for _, _, error in errors.values())
    minimum = head["int4, groups of 32 with minimum"] / head["int4, groups of 32"]
    return (
        Relation(
            "the fewer values share a scale, the smaller the error",
            all(wide > narrow for errors in ladder for wide, narrow in pairwise(errors)),
            "; ".join(" > ".join(f"{100 * error:.2g}%" for error in errors) for errors in ladder),
        ),
        Relation(
            "four bits less make some 18 times the error (127 steps to 7)",
            10 < ratio < 30,
            f"{ratio:.0f} times",
        ),
        Relation(
            "a minimum beside the scale lowers it at four bits",
            minimum < 1,
            f"to {100 * minimum:.0f}%",
        ),
        Relation(
            "a grid that is finer than the stored one, with the same groups, loses next to nothing",
            stored < 0.05,
            f"{100 * stored:.2g}% where a scale a row loses {100 * errors['int4, a scale a row'][2]:.2g}%",
        ),
        Relation(
            "activations in 8 bits cost far more than in 16",
            products[8] > 50 * products[16],
            f"{100 * products[8]:.2g}% and {100 * products[16]:.2g}% of the product",
        ),
    )


def engine_relations(
    engine: dict[str, Measured], drift: dict[str, tuple[float, float]]
) -> tuple[Relation, ...]:
    """Fewer bytes, shorter steps; the default stays with float32."""
    fewest = min(ENGINES, key=lambda name: engine[name].num_bytes)
    faster = engine["bf16"].step_s / engine[fewest].step_s
    return (
        Relation(
            "the engine's default agrees with float32 on nearly every likeliest token",
            drift[DEFAULT][1] > 0.9,
            ", ".join(f"{name} {100 * drift[name][1]:.1f}%" for name in ENGINES),
        ),
        Relation(
            "no precision is far from float32",
            all(off < 0.5 for off, _ in drift.values()),
            "mean difference of log probabilities: "
            + ", ".join(f"{name} {drift[name][0]:.3f}" for name in ENGINES),
        ),
        Relation(
            "fewer bytes are read faster: one request's step is shorter than in bf16",
            faster > 1.1,
            f"{fewest}: {engine['bf16'].num_bytes / engine[fewest].num_bytes:.1f} times fewer bytes, "
            f"{faster:.1f} times faster",
        ),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """Error against bits, for each scheme on the head; the engine's step by precision."""
    schemes, engine = figure.subplots(1, 2, width_ratios=(3, 2))
    names = list(result.data["errors"])
    errors = [100 * result.data["errors"][name]["head"] for name in names]
    bars = schemes.barh(
        names, errors, color=["tab:blue" if n.startswith("int8") else "tab:orange" for n in names]
    )
    schemes.bar_label(bars, [f"{error:.2g}%" for error in errors], padding=3, fontsize=8)
    schemes.invert_yaxis()
    schemes.set(
        xscale="log",
        xlabel="relative error, %",
        title="output head, norm folded in",
        xlim=(min(errors) / 4, 4 * max(errors)),
    )
    schemes.tick_params(axis="y", labelsize=8)
    points = result.data["engine"]
    bars = engine.bar(list(points), [point["step_ms"] for point in points.values()], color="tab:gray")
    engine.bar_label(bars, [f"{point['bytes'] / 1e6:.0f} MB" for point in points.values()], fontsize=8)
    engine.set(
        ylabel="ms",
        title="a decode step",
        ylim=(0, 1.15 * max(point["step_ms"] for point in points.values())),
    )


LLAMA_8B = known_model("Llama-3.1-8B")

LAB = Lab(
    title="What do fewer bits a weight cost, and what do they save?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question="4-bit values in groups of 32 with a 16-bit scale and a 16-bit minimum: bits a weight?",
            answer=4 + 32 / 32,
            wrong="4",
            hint="Two times 16 bits, shared by 32 weights.",
            tolerance=0.001,
        ),
        Exercise(
            question=(
                "All 8.03 billion parameters of Llama 3.1 8B as int4 in groups of 128 with a 16-bit scale: "
                "how many GB?"
            ),
            answer=parameter_counts(LLAMA_8B).total * (4 + 16 / 128) / 8 / 1e9,
            wrong="16.06",
            hint="4 + 16 / 128 bits a weight, eight bits a byte.",
        ),
        Exercise(
            question=(
                "A prefill of 2,000 tokens is bound by arithmetic. Does rounding only the weights make it "
                "faster?"
            ),
            answer=("no",),
            wrong="yes",
            hint="Which of bytes and operations does weight-only quantization lower?",
        ),
    ),
)
