"""What sampling a step's rows costs: the definition in numpy against the native kernel.

    python benchmarks/sampling.py [--vocab 49152 262144] [--batch 32] [--threads 2] [--json]

Every case samples `--batch` rows: `peaked` logits are like a language model's (a normal tail and some
likely tokens), `flat` ones are the worst case of truncation. Reported is the median (and the best) of
`--repeats` calls in milliseconds a step, and whether both chose the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.engine.hardware_probe import probe_hardware
from ridgeline.engine.sampling_params import SamplingParams
from ridgeline.runtime.native import _native  # type: ignore[attr-defined]
from ridgeline.runtime.sampler import ROW, SampleRow, record, sample

CASES = {
    "greedy": SamplingParams(temperature=0),
    "temperature": SamplingParams(temperature=0.8),
    "top_k 40": SamplingParams(temperature=0.8, top_k=40),
    "top_p 0.95": SamplingParams(temperature=0.8, top_p=0.95),
    "repetition 1.1": SamplingParams(temperature=0.8, top_p=0.95, repetition_penalty=1.1),
}
LENGTH = 512
"""Tokens of each request so far, which penalties look at."""

Logits = npt.NDArray[np.float32]


def logits_of(kind: str, batch: int, vocab: int) -> Logits:
    """`[batch, vocab]`."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, vocab)).astype(np.float32)
    if kind == "flat":
        return x * np.float32(0.1)
    likely = rng.integers(0, vocab, (batch, 50))
    np.put_along_axis(x, likely, 8 + 3 * rng.standard_normal((batch, 50)).astype(np.float32), axis=1)
    return x * np.float32(2)


def milliseconds(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median and best over `repeats` calls, after one that warms up."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {"median_ms": 1e3 * statistics.median(seconds), "best_ms": 1e3 * min(seconds)}


def measure(params: SamplingParams, logits: Logits, pool: Any, repeats: int) -> dict[str, Any]:
    """Both samplers on the same rows. Penalties are applied anew at each call."""
    batch, vocab = logits.shape
    store = np.random.default_rng(1).integers(0, vocab, (batch, LENGTH)).astype(np.int32)
    nothing = np.empty(0, np.int32)
    rows = [SampleRow(params, i, LENGTH, store[i], 64, nothing) for i in range(batch)]
    records = np.array([record(params, i, 64) for i in range(batch)], ROW)
    as_bytes = records.view(np.uint8).reshape(batch, -1)
    slots, lengths = np.arange(batch, dtype=np.int32), np.full(batch, LENGTH, np.int32)
    chosen = np.empty(batch, np.int32)

    def native(values: Logits) -> npt.NDArray[np.int32]:
        _native.sample(pool, values, as_bytes, store, slots, lengths, chosen)
        return chosen

    same = bool((native(logits.copy()) == sample(logits.copy(), rows).tokens).all())
    work = logits.copy()
    return {
        "numpy": milliseconds(lambda: sample(work, rows), max(2, repeats // 10)),
        "native": milliseconds(lambda: native(work), repeats),
        "same_tokens": same,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab", type=int, nargs="+", default=[49_152, 262_144])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    pool = _native.ThreadPool(args.threads)
    results = []
    for vocab in args.vocab:
        for kind in ("peaked", "flat"):
            logits = logits_of(kind, args.batch, vocab)
            for name, params in CASES.items():
                figures = measure(params, logits, pool, args.repeats)
                results.append({"vocab": vocab, "logits": kind, "case": name, **figures})
    recipe = {
        "machine": probe_hardware().name,
        "tier": _native.tier(),
        "load_average": os.getloadavg()[0],
        **{key: value for key, value in vars(args).items() if key != "json"},
    }
    if args.json:
        print(json.dumps({"recipe": recipe, "results": results}, indent=2))
        return
    print("recipe:", ", ".join(f"{key}={value}" for key, value in recipe.items()))
    print(f"ms a step of {args.batch} rows, median (best)")
    for r in results:
        numpy, native = (f"{r[k]['median_ms']:9.3f} ({r[k]['best_ms']:.3f})" for k in ("numpy", "native"))
        print(
            f"  {r['vocab']:>7} {r['logits']:6} {r['case']:15} numpy {numpy:22} native {native:22}"
            + ("" if r["same_tokens"] else "  OTHER TOKENS")
        )


if __name__ == "__main__":
    main()
