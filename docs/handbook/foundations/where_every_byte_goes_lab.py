"""Lab: the parameters of a model counted part by part, held against the file, priced in bytes."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from ridgeline.cli.lab_models import known_model
from ridgeline.cli.labs import Exercise, Lab, LabContext, LabResult, Relation
from ridgeline.engine.source import read_header, read_spec, resolve_source
from ridgeline.facts.formulas import ParameterCounts, flops_per_token, kv_bytes_per_token, parameter_counts
from ridgeline.facts.model_spec import ModelSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ridgeline.facts.gguf import GgufHeader

MODELS = ("SmolLM2-135M", "Llama-3.1-8B", "Llama-3.1-70B")
PARTS = ("embedding", "head", "attention", "mlp", "norms")
BF16 = 2
PART_OF_TENSOR = {
    "token_embd": "embedding",
    "output": "head",
    "output_norm": "norms",
    "attn_norm": "norms",
    "ffn_norm": "norms",
    "attn_q": "attention",
    "attn_k": "attention",
    "attn_v": "attention",
    "attn_output": "attention",
    "ffn_gate": "mlp",
    "ffn_up": "mlp",
    "ffn_down": "mlp",
}
"""Last part of a GGUF tensor's name, less `.weight` -> part of a Llama model."""


def count_in_file(header: GgufHeader) -> dict[str, int]:
    """Parameters by part, by reading the names and shapes of the file's tensors."""
    counts = dict.fromkeys(PARTS, 0)
    for tensor in header.tensors:
        kind = tensor.name.removesuffix(".weight").rpartition(".")[2]
        counts[PART_OF_TENSOR[kind]] += prod(tensor.shape)
    return counts


def read_in_decode(counts: ParameterCounts) -> int:
    """Parameters that a decode step reads: all but an embedding table that is not also the head."""
    return counts.total - (counts.embedding if counts.head else 0)


def run(context: LabContext) -> LabResult:
    """Count the default model by formula and in its file; then three models by formula."""
    source = resolve_source(context.model)
    header = read_header(source)
    spec = read_spec(source, header)
    counted = parameter_counts(spec)
    specs = {name: known_model(name) for name in MODELS}
    counts = {name: parameter_counts(spec) for name, spec in specs.items()}
    rows = tuple(
        (part, *(cell for name in MODELS for cell in _cells(counts[name], part)))
        for part in (*PARTS, "total")
    )
    heads = tuple(column for name in MODELS for column in (f"{name} (M)", "share %"))
    return LabResult(
        columns=("part", *heads),
        rows=rows,
        relations=(*file_relations(header, counted), *model_relations(specs, counts)),
        data={
            "shares": {name: {p: getattr(c, p) / c.total for p in PARTS} for name, c in counts.items()},
            "weight_bytes": {name: c.total * BF16 for name, c in counts.items()},
            "kv_bytes_per_token": {name: kv_bytes_per_token(spec, BF16) for name, spec in specs.items()},
        },
    )


def _cells(counts: ParameterCounts, part: str) -> tuple[float, float]:
    value = getattr(counts, part)
    return round(value / 1e6, 3), round(100 * value / counts.total, 2)


def file_relations(header: GgufHeader | None, counted: ParameterCounts) -> tuple[Relation, ...]:
    """The formula must agree with the file to the last parameter (a GGUF file of the Llama family)."""
    if header is None:
        return ()
    found = count_in_file(header)
    same = all(found[part] == getattr(counted, part) for part in PARTS)
    return (
        Relation(
            "the formula counts what the file holds, part by part", same, f"{counted.total:,} parameters"
        ),
    )


def model_relations(specs: dict[str, ModelSpec], counts: dict[str, ParameterCounts]) -> tuple[Relation, ...]:
    """Where the bytes are, and when the cache outgrows the weights."""
    small, large = counts["SmolLM2-135M"], counts["Llama-3.1-70B"]
    share_small, share_large = small.embedding / small.total, (large.embedding + large.head) / large.total
    big = specs["Llama-3.1-8B"]
    weights = counts["Llama-3.1-8B"].total * BF16
    crossing = weights / kv_bytes_per_token(big, BF16)
    counted = flops_per_token(big, 1_000)
    rule = 2 * read_in_decode(counts["Llama-3.1-8B"])
    return (
        Relation(
            "most parameters are in the MLPs",
            all(c.mlp > c.total / 2 for c in counts.values()),
            ", ".join(f"{name} {100 * c.mlp / c.total:.0f}%" for name, c in counts.items()),
        ),
        Relation(
            "the vocabulary's share shrinks as models grow",
            share_small > 5 * share_large,
            f"{share_small:.0%} and {share_large:.0%}",
        ),
        Relation(
            "for Llama 3.1 8B the cache is as large as the weights within one full context",
            crossing < 131_072,
            f"at {crossing:,.0f} tokens over all sequences",
        ),
        Relation(
            "a token costs 2 operations per parameter read, while the context is short",
            rule <= counted < 1.05 * rule,
            f"2 x {rule / 2e9:.2f}G = {rule / 1e9:.1f} GFLOP, counted {counted / 1e9:.1f}",
        ),
        Relation(
            "at the full context attention outweighs the matrices",
            flops_per_token(big, 131_072) > 2 * rule,
            f"{flops_per_token(big, 131_072) / 1e9:.0f} GFLOP a token at 131,072",
        ),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """Shares of the parameters by part; and weights against cache as the tokens in it grow."""
    shares, growth = figure.subplots(1, 2)
    left = dict.fromkeys(result.data["shares"], 0.0)
    for part in PARTS:
        widths = {name: 100 * share[part] for name, share in result.data["shares"].items()}
        shares.barh(list(widths), list(widths.values()), left=list(left.values()), label=part)
        left = {name: left[name] + widths[name] for name in left}
    shares.invert_yaxis()
    shares.set(xlabel="% of the parameters")
    shares.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.15))
    shares.tick_params(axis="y", labelsize=8)
    tokens = [1_000 * 2**power for power in range(11)]
    for index, name in enumerate(("Llama-3.1-8B", "Llama-3.1-70B")):
        kv = result.data["kv_bytes_per_token"][name]
        growth.plot(tokens, [kv * n / 1e9 for n in tokens], color=f"C{index}", label=f"{name}: cache")
        weights = result.data["weight_bytes"][name] / 1e9
        growth.axhline(weights, color=f"C{index}", linestyle="--", label=f"{name}: weights")
    growth.set(
        xscale="log", yscale="log", xlabel="tokens in the cache, all sequences", ylabel="GB in bfloat16"
    )
    growth.legend(fontsize=7)


LLAMA_8B = known_model("Llama-3.1-8B")

LAB = Lab(
    title="Where does every byte of a model go?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question="How many bytes are Llama 3.1 8B's weights in bfloat16? (Units are read: 2 GB.)",
            answer=parameter_counts(LLAMA_8B).total * BF16,
            wrong="8 GB",
            hint="Two bytes a parameter, and the exact count is in the table.",
        ),
        Exercise(
            question="At how many tokens in the cache (bfloat16, all sequences) does it hold as many "
            "bytes as the weights of Llama 3.1 8B?",
            answer=parameter_counts(LLAMA_8B).total * BF16 / kv_bytes_per_token(LLAMA_8B, BF16),
            wrong="131072",
            hint="Weights divided by 128 KiB.",
        ),
        Exercise(
            question="An H100 reads 3.35 TB/s. At best, how many tokens a second does one request get from "
            "Llama 3.1 8B in bfloat16 (its embedding table is not read, the cache is empty)?",
            answer=3.35e12 / (read_in_decode(parameter_counts(LLAMA_8B)) * BF16),
            wrong="418",
            hint="Bandwidth divided by the bytes that a step reads: all weights but the embedding table.",
        ),
    ),
)
