"""Lab: how many key/value heads a model keeps, and how far they look back, decides what its memory can hold.

Two parts: arithmetic over real models (bytes a token, sequences that fit a GPU), and numpy attention
over a cache of one shape after another, which must get faster as there is less to read.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from ridgeline.cli.lab_models import known_model
from ridgeline.cli.labs import Exercise, Lab, LabContext, LabResult, Relation
from ridgeline.facts.kv_layout import KvLayout, kv_layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = ("Llama-2-7B", "Llama-3.1-8B", "Gemma-3-27B", "Gemma-3-1B")
KIND = {
    "Llama-2-7B": "MHA",
    "Llama-3.1-8B": "GQA",
    "Gemma-3-27B": "GQA + windows",
    "Gemma-3-1B": "MQA + windows",
}
CONTEXTS = (1_024, 8_192, 32_768, 131_072)
FREE_BYTES = 40 * 10**9
"""What an 80 GB GPU might have left for the cache."""
NUM_HEADS, HEAD_DIM = 16, 64


def layout_of(name: str) -> KvLayout:
    """The bf16 cache of a model in blocks of 16 tokens."""
    return kv_layout(known_model(name), block_size=16, bytes_per_element=2)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One decode token's attention, reading each kv head once for its whole group of query heads.

    q `[num_heads, head_dim]`, k and v `[num_kv_heads, num_tokens, head_dim]` -> `[num_heads, head_dim]`.
    """
    num_kv_heads, _, head_dim = k.shape
    grouped = q.reshape(num_kv_heads, -1, head_dim)
    scores = grouped @ k.transpose(0, 2, 1) / np.sqrt(head_dim)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ v).reshape(q.shape)


def fastest_s(
    q: np.ndarray, caches: dict[str, tuple[np.ndarray, np.ndarray]], rounds: int
) -> dict[str, float]:
    """Least seconds of one call over each cache, taken in turn: noise only adds, and hits all alike."""
    least = dict.fromkeys(caches, float("inf"))
    for _ in range(rounds):
        for name, (k, v) in caches.items():
            start = time.perf_counter()
            attend(q, k, v)
            least[name] = min(least[name], time.perf_counter() - start)
    return least


def run(context: LabContext) -> LabResult:
    """The table over models, then attention over caches of 16, 4 and 1 kv heads and a window."""
    layouts = {name: layout_of(name) for name in MODELS}
    rows = tuple(
        (
            name,
            KIND[name],
            layout.bytes_per_token / 1024,
            layout.bytes_for(8_192) / 2**20,
            layout.bytes_for(131_072) / 2**30,
            FREE_BYTES // layout.bytes_for(8_192),
        )
        for name, layout in layouts.items()
    )
    measured = measure(num_tokens=8_192 if context.quick else 32_768)
    return LabResult(
        columns=("model", "kind", "KiB a token", "MiB at 8K", "GiB at 128K", "sequences of 8K in 40 GB"),
        rows=rows,
        relations=(*memory_relations(layouts), *measured_relations(measured), *exactness_relations()),
        data={
            "contexts": CONTEXTS,
            "bytes": {name: [layout.bytes_for(n) for n in CONTEXTS] for name, layout in layouts.items()},
            "attention_ms": measured,
        },
    )


def measure(num_tokens: int) -> dict[str, float]:
    """Milliseconds of one attention call over `num_tokens` cached tokens, by shape of the cache."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((NUM_HEADS, HEAD_DIM), dtype=np.float32)
    cache = rng.standard_normal((2, NUM_HEADS, num_tokens, HEAD_DIM), dtype=np.float32)
    window = num_tokens // 16
    caches = {
        "MHA, 16 kv heads": (cache[0], cache[1]),
        "GQA, 4 kv heads": (cache[0, :4], cache[1, :4]),
        "MQA, 1 kv head": (cache[0, :1], cache[1, :1]),
        "MHA, window of 1/16": (cache[0, :, -window:].copy(), cache[1, :, -window:].copy()),
    }
    return {name: 1e3 * seconds for name, seconds in fastest_s(q, caches, rounds=25).items()}


def memory_relations(layouts: dict[str, KvLayout]) -> tuple[Relation, ...]:
    """What follows from the formula alone, so that it holds exactly."""
    mha, gqa = layouts["Llama-2-7B"].bytes_per_token, layouts["Llama-3.1-8B"].bytes_per_token
    gemma = layouts["Gemma-3-27B"]
    short, long = gemma.bytes_for(1_024) / 1_024, gemma.bytes_for(131_072) / 131_072
    return (
        Relation(
            "a quarter of the kv heads is a quarter of the bytes", mha == 4 * gqa, f"{mha} and {gqa} a token"
        ),
        Relation(
            "with windows a token gets cheaper as the context grows",
            long < short / 4,
            f"Gemma 3 27B: {short / 1024:.0f} KiB a token at 1K, {long / 1024:.0f} KiB at 128K",
        ),
        Relation(
            "a larger model can cost less memory at a long context than a smaller one",
            gemma.bytes_for(131_072) < layouts["Llama-3.1-8B"].bytes_for(131_072),
            "Gemma 3 27B below Llama 3.1 8B at 128K",
        ),
    )


def measured_relations(ms: dict[str, float]) -> tuple[Relation, ...]:
    """Attention in decode is reading the cache: less of it takes less time."""
    mha, gqa, mqa, window = ms.values()
    return (
        Relation("GQA attends faster than MHA", gqa < mha, f"{gqa:.2f} ms against {mha:.2f} ms"),
        Relation("MQA attends faster than GQA", mqa < gqa, f"{mqa:.2f} ms against {gqa:.2f} ms"),
        Relation(
            "a window attends faster than everything", window < mha, f"{window:.2f} ms against {mha:.2f} ms"
        ),
    )


def exactness_relations() -> tuple[Relation, ...]:
    """GQA is MHA with repeated kv heads; a window as long as the text is no window."""
    rng = np.random.default_rng(1)
    q = rng.standard_normal((8, HEAD_DIM))
    k, v = rng.standard_normal((2, 2, 100, HEAD_DIM))
    repeated = attend(q, np.repeat(k, 4, axis=0), np.repeat(v, 4, axis=0))
    difference = float(np.abs(attend(q, k, v) - repeated).max())
    return (
        Relation(
            "GQA equals MHA with its kv heads repeated", difference < 1e-12, f"apart by {difference:.1e}"
        ),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """Bytes of one sequence against its length, both logarithmic; and the measured attention times."""
    memory, speed = figure.subplots(1, 2, width_ratios=(3, 2))
    for name, sizes in result.data["bytes"].items():
        memory.plot(
            result.data["contexts"],
            [size / 2**30 for size in sizes],
            marker="o",
            label=f"{name} ({KIND[name]})",
        )
    memory.set(
        xscale="log", yscale="log", xlabel="tokens in the context", ylabel="GiB of KV cache a sequence"
    )
    memory.legend(fontsize=7)
    times = result.data["attention_ms"]
    speed.barh(list(times), list(times.values()), color="tab:gray")
    speed.invert_yaxis()
    speed.set(xlabel="ms a decode step (numpy)")
    speed.tick_params(axis="y", labelsize=7)


LLAMA_70B = known_model("Llama-3.1-70B")

LAB = Lab(
    title="What do fewer key/value heads and shorter windows save?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question="Llama 3.1 70B: 80 layers, 8 kv heads, head_dim 128. How many bytes a token?",
            answer=float(kv_layout(LLAMA_70B, 16, 2).bytes_per_token),
            wrong="163840",
            hint="K and V both: 2 x layers x kv heads x head_dim x 2 bytes.",
            tolerance=0.001,
        ),
        Exercise(
            question=(
                "If the same 70B model used one kv head for each of its 64 heads, how many sequences of 8,192"
                " tokens would fit where now 64 fit?"
            ),
            answer=8.0,
            wrong="512",
            hint="The bytes of a token grow by the ratio of kv heads.",
        ),
        Exercise(
            question="A model has 6 layers with a window of 1,024 and 1 full layer. At 100,000 tokens, "
            "which kind holds most of the cache: window or full?",
            answer=("full", "the full layer", "full layers"),
            wrong="window",
            hint="Six layers hold 1,024 tokens each, one holds 100,000.",
        ),
    ),
)
