"""Lab: what fits in small memories, by the engine's own ledger; what each instruction set tier is worth.

The ledger is computed, nothing is loaded. The tiers are measured in processes of their own (this file
started again with RIDGELINE_ISA set), because an engine chooses its kernels once.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from ridgeline.cli.lab_models import known_model
from ridgeline.cli.labs import Exercise, Lab, LabContext, LabError, LabResult, Relation
from ridgeline.cost.memory import MemoryLedger, memory_ledger
from ridgeline.engine.build import prepare
from ridgeline.engine.options import EngineOptions
from ridgeline.facts.formulas import kv_bytes_per_token, parameter_counts
from ridgeline.facts.kv_layout import kv_layout
from ridgeline.facts.precision import Precision

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = ("SmolLM2-135M", "Gemma-3-1B", "Llama-3.1-8B")
PRECISIONS: tuple[Precision, ...] = ("bf16", "int8", "int4")
CONTEXTS = (2_048, 8_192, 32_768)
MEMORIES_GB = (4, 8, 16)
OTHERS_BYTES = 1_500_000_000
"""What the system and its user's programs take of a small machine."""
BLOCK_SIZE = 32


def one_user(name: str, precision: Precision, context_tokens: int) -> MemoryLedger:
    """The ledger of one user of a known model, its whole context in the cache (bf16)."""
    spec = known_model(name)
    layout = kv_layout(spec, BLOCK_SIZE, 2)
    return memory_ledger(
        spec,
        layout,
        num_blocks=layout.blocks_for(context_tokens),
        weights=precision,
        head_weights="bf16" if precision == "bf16" else "int8",
        max_num_seqs=1,
        max_num_batched_tokens=512,
        max_model_len=context_tokens,
    )


def smallest_memory_gb(num_bytes: int) -> str:
    """The smallest of MEMORIES_GB in which this fits beside everything else."""
    fitting = [gb for gb in MEMORIES_GB if num_bytes + OTHERS_BYTES <= gb * 1e9]
    return f"{min(fitting)} GB" if fitting else "none"


def own_ledgers(context: LabContext) -> dict[tuple[Precision, int], MemoryLedger]:
    """The lab's model as the engine itself would resolve it, for one request at a time."""
    return {
        (precision, length): prepare(
            EngineOptions(
                model=context.model, backend="native", weights=precision, max_model_len=length,
                max_num_seqs=1, num_blocks=-(-length // BLOCK_SIZE) + 1, block_size=BLOCK_SIZE,
            )
        ).ledger
        for precision in PRECISIONS
        for length in (512, 2_048, 8_192)
    }  # fmt: skip


def measure_here(quick: bool, model: str | None) -> None:
    """In a process of its own: decode and prefill of one request, printed as JSON."""
    from ridgeline import LLM, SamplingParams
    from ridgeline.cli.labs import LAB_KV_BYTES, text_tokens, token_times

    num_prompt, num_tokens, rounds = (48, 10, 1) if quick else (96, 16, 2)
    options: dict[str, Any] = {"backend": "native", "enable_prefix_caching": False}
    with LLM(model, kv_memory_bytes=LAB_KV_BYTES, **options) as llm:
        prompt = text_tokens(llm, num_prompt)
        params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
        runs = [token_times(llm, prompt, params) for _ in range(rounds + 1)][1:]
        steps = [after - before for times, _ in runs for before, after in pairwise(times)]
        report = {
            "tier": llm.config.isa_tier,
            "decode_tok_s": 1 / median(steps),
            "prefill_tok_s": num_prompt / median(times[0] for times, _ in runs),
            "token_ids": runs[0][1],
        }
    print(json.dumps(report))


def on_tier(tier: str, context: LabContext) -> dict[str, Any]:
    """`measure_here` in a fresh process on that tier. Raises LabError with what it said when it failed."""
    command = [sys.executable, __file__, "quick" if context.quick else "full"]
    command += [context.model] if context.model else []
    environment = {**os.environ, "RIDGELINE_ISA": tier}
    process = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    if process.returncode:
        raise LabError(f"tier {tier} failed: {process.stderr.strip().splitlines()[-1:]}")
    report: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return report


def measure_tiers(context: LabContext) -> dict[str, dict[str, Any]]:
    """Every tier that runs here (quick: the weakest and the strongest), taking turns; medians."""
    tiers = list(importlib.import_module("ridgeline.runtime.native._native").available_tiers())
    if context.quick:
        tiers = [tiers[0], tiers[-1]]
    turns = [{tier: on_tier(tier, context) for tier in tiers} for _ in range(1 if context.quick else 2)]
    return {
        tier: {
            **turns[0][tier],
            **{key: median(turn[tier][key] for turn in turns) for key in ("decode_tok_s", "prefill_tok_s")},
        }
        for tier in tiers
    }


def run(context: LabContext) -> LabResult:
    """Ledgers of three models and of the lab's own, then the tiers."""
    known = {
        (name, precision, length): one_user(name, precision, length).total_bytes
        for name in MODELS
        for precision in PRECISIONS
        for length in CONTEXTS
        if length <= known_model(name).context_length
    }
    own = own_ledgers(context)
    tiers = measure_tiers(context)
    return LabResult(
        columns=("what", "weights", "context", "GB", "fits in", "decode tok/s", "prefill tok/s"),
        rows=(
            *(
                (name, precision, length, total / 1e9, smallest_memory_gb(total), "", "")
                for (name, precision, length), total in known.items()
            ),
            *(
                ("this engine", precision, length, ledger.total_bytes / 1e9,
                 smallest_memory_gb(ledger.total_bytes), "", "")
                for (precision, length), ledger in own.items()
            ),
            *(
                (f"tier {tier}", "", "", "", "", found["decode_tok_s"], found["prefill_tok_s"])
                for tier, found in tiers.items()
            ),
        ),
        relations=(*ledger_relations(known, own), *tier_relations(tiers)),
        data={
            "known": [[*key, total] for key, total in known.items()],
            "own": {f"{precision} {length}": ledger.as_dict() for (precision, length), ledger in own.items()},
            "tiers": tiers,
        },
    )  # fmt: skip


def ledger_relations(
    known: dict[tuple[str, Precision, int], int], own: dict[tuple[Precision, int], MemoryLedger]
) -> tuple[Relation, ...]:
    """Bits and context decide what fits."""
    eight = {
        (precision, length): known["Llama-3.1-8B", precision, length]
        for precision in PRECISIONS
        for length in CONTEXTS
    }
    grows = all(
        own[precision, short].total_bytes < own[precision, long].total_bytes
        for precision in PRECISIONS
        for short, long in ((512, 2_048), (2_048, 8_192))
    )
    return (
        Relation(
            "an 8B model fits in 8 GB as int4 with a short context, and not as int8",
            smallest_memory_gb(eight["int4", 2_048]) == "8 GB"
            and smallest_memory_gb(eight["int8", 2_048]) == "16 GB",
            f"{eight['int4', 2_048] / 1e9:.1f} and {eight['int8', 2_048] / 1e9:.1f} GB, "
            f"{OTHERS_BYTES / 1e9:.1f} GB for others",
        ),
        Relation(
            "in bf16 it does not fit in 16 GB",
            smallest_memory_gb(eight["bf16", 2_048]) == "none",
            f"{eight['bf16', 2_048] / 1e9:.1f} GB",
        ),
        Relation(
            "as int4 with a long context it takes more than as int8 with a short one",
            eight["int4", 32_768] > eight["int8", 2_048],
            f"int4 with 32,768 tokens: {eight['int4', 32_768] / 1e9:.1f} GB",
        ),
        Relation(
            "the engine's ledger grows with the context at every precision, and shrinks with the bits",
            grows
            and own["bf16", 2_048].total_bytes > min(own[p, 2_048].total_bytes for p in ("int8", "int4")),
            ", ".join(f"{p} {own[p, 2_048].total_bytes / 1e6:.0f} MB" for p in PRECISIONS)
            + " at 2,048 tokens",
        ),
    )


def tier_relations(tiers: dict[str, dict[str, Any]]) -> tuple[Relation, ...]:
    """More capable instructions help arithmetic more than reading."""
    weakest, strongest = next(iter(tiers)), list(tiers)[-1]
    if weakest == strongest:
        return (Relation("this machine runs one tier only", True, weakest),)
    gain = {key: tiers[strongest][key] / tiers[weakest][key] for key in ("decode_tok_s", "prefill_tok_s")}
    same = sum(
        a == b for a, b in zip(tiers[weakest]["token_ids"], tiers[strongest]["token_ids"], strict=True)
    )
    return (
        Relation(
            "the strongest tier computes a prompt faster than the weakest",
            gain["prefill_tok_s"] > 1.5,
            f"{strongest} over {weakest}: {gain['prefill_tok_s']:.1f} times in prefill, "
            f"{gain['decode_tok_s']:.1f} times in decode; "
            f"{same} of {len(tiers[weakest]['token_ids'])} greedy tokens are the same",
        ),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """Llama 3.1 8B and Gemma 3 1B against three memories; the tiers' speeds."""
    memory, speed = figure.subplots(1, 2, width_ratios=(3, 2))
    shown = [row for row in result.data["known"] if row[0] != MODELS[0]]
    names = [f"{name}, {precision}, {length // 1024}k" for name, precision, length, _ in shown]
    memory.barh(names, [total / 1e9 for *_, total in shown], color="tab:blue")
    for gb in MEMORIES_GB:
        memory.axvline(gb - OTHERS_BYTES / 1e9, color="tab:red", linestyle="--", linewidth=1)
    memory.invert_yaxis()
    memory.set(xlabel="GB, one user; red: what is left of 4, 8 and 16 GB")
    memory.tick_params(axis="y", labelsize=7)
    tiers = result.data["tiers"]
    places = range(len(tiers))
    for offset, key in ((-0.2, "decode_tok_s"), (0.2, "prefill_tok_s")):
        values = [found[key] for found in tiers.values()]
        bars = speed.bar([place + offset for place in places], values, 0.4, label=key.partition("_")[0])
        speed.bar_label(bars, [f"{value:.0f}" for value in values], fontsize=8)
    speed.set_xticks(places, list(tiers))
    speed.set(yscale="log", ylabel="tokens/s", title="the default model by tier")
    speed.legend(fontsize=8)


LLAMA_8B = known_model("Llama-3.1-8B")
INT4_BYTES = parameter_counts(LLAMA_8B).total * 4.5 / 8

LAB = Lab(
    title="What fits in a small machine, and what do its instructions make of it?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question="A 3-billion-parameter model at 4.5 bits a weight: how many GB?",
            answer=3 * 4.5 / 8,
            wrong="13.5",
            hint="Bits over eight are bytes.",
        ),
        Exercise(
            question=(
                "A laptop reads 100 GB/s. Llama 3.1 8B at 4.5 bits a weight, all of it read at each token: "
                "how many tokens a second at most?"
            ),
            answer=100e9 / INT4_BYTES,
            wrong="100",
            hint="Bandwidth over bytes of the weights (4.5 GB).",
        ),
        Exercise(
            question=(
                "8 GB of memory, 1.5 GB of it taken by others, 4.5 GB by weights, 0.5 GB by the engine: how "
                "many tokens of Llama 3.1 8B's context fit in the rest (bf16)?"
            ),
            answer=1.5e9 / kv_bytes_per_token(LLAMA_8B, 2),
            wrong="50000",
            hint="1.5 GB over 128 KiB a token.",
        ),
    ),
)

if __name__ == "__main__":
    measure_here(sys.argv[1] == "quick", sys.argv[2] if len(sys.argv) > 2 else None)
