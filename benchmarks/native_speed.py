"""Speed of the native kernels on a model: decode at several batch sizes and a prefill, tokens a second.

    python benchmarks/native_speed.py [--model M] [--weights stored] [--threads 1 2] [--json]

Each figure is the median (and the best) of `--repeats` steps of the tape, without tokenizer, scheduler or
sampling.
Prints the recipe: machine, tier, weights, threads, context, so that a figure can be repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

from ridgeline.engine.hardware_probe import probe_hardware
from ridgeline.engine.source import read_header, read_spec, resolve_source
from ridgeline.facts.kv_layout import kv_layout
from ridgeline.runtime.batch import Batch
from ridgeline.runtime.models import load_model
from ridgeline.runtime.native.backend import NativeBackend
from ridgeline.runtime.weights import open_tensors

BLOCK_SIZE = 32
MAX_LEN = 2048
PREFILL_TOKENS = 512


def batch_of(num_rows: int, count: int, context: int, num_groups: int) -> Batch:
    """`num_rows` requests that compute `count` tokens each after `context` others; logits of the last."""
    width = MAX_LEN // BLOCK_SIZE
    total = num_rows * count
    blocks = np.arange(num_rows * num_groups * width, dtype=np.int32).reshape(num_groups, num_rows, width)
    return Batch(
        token_ids=(np.arange(total, dtype=np.int32) % 1000) + 100,
        positions=np.tile(np.arange(context, context + count, dtype=np.int32), num_rows),
        row_starts=np.arange(0, total + 1, count, dtype=np.int32),
        context_before=np.full(num_rows, context, np.int32),
        block_tables=tuple(np.ascontiguousarray(table) for table in blocks),
        logit_rows=np.arange(count - 1, total, count, dtype=np.int32),
    )


def tokens_per_second(backend: NativeBackend, model: Any, batch: Batch, repeats: int) -> dict[str, float]:
    """Median and best over `repeats` runs, after one that warms up."""
    backend.run(model, batch)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        backend.run(model, batch)
        seconds.append(time.perf_counter() - start)
    return {
        "median": batch.num_tokens / statistics.median(seconds),
        "best": batch.num_tokens / min(seconds),
    }


def measure(args: argparse.Namespace, num_threads: int) -> dict[str, Any]:
    """Load the model and run every case."""
    source = resolve_source(args.model)
    spec = read_spec(source, read_header(source))
    start = time.perf_counter()
    backend = NativeBackend(
        weights=args.weights,
        head_weights=args.head_weights,
        num_threads=num_threads,
        max_num_batched_tokens=PREFILL_TOKENS,
        max_model_len=MAX_LEN,
    )
    model = load_model(spec, open_tensors(source, spec), backend)
    load_s = time.perf_counter() - start
    layout = kv_layout(spec, BLOCK_SIZE, 2)
    groups = len(layout.groups)
    backend.allocate_kv(layout, max(args.batch) * groups * (MAX_LEN // BLOCK_SIZE))
    result: dict[str, Any] = {
        "threads": num_threads,
        "tier": backend.tier,
        "load_s": load_s,
        "weight_bytes": backend.weight_bytes,
    }
    for size in args.batch:
        batch = batch_of(size, 1, args.context, groups)
        result[f"decode_{size}"] = tokens_per_second(backend, model, batch, args.repeats)
    prefill = batch_of(1, PREFILL_TOKENS, 0, groups)
    result[f"prefill_{PREFILL_TOKENS}"] = tokens_per_second(
        backend, model, prefill, max(3, args.repeats // 5)
    )
    backend.close()
    return result


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=None, help="a path or a name; the default model if not given")
    parser.add_argument("--weights", default="stored", choices=["stored", "int8", "int4", "bf16", "float32"])
    parser.add_argument("--head-weights", default=None, choices=["stored", "int8", "bf16", "float32"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=128, help="tokens before the decoded one")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.head_weights = args.head_weights or (args.weights if args.weights != "int4" else "int8")
    results = [measure(args, threads) for threads in args.threads]
    recipe = {"machine": probe_hardware().name, **{k: v for k, v in vars(args).items() if k != "json"}}
    if args.json:
        print(json.dumps({"recipe": recipe, "results": results}, indent=2))
        return
    print("recipe:", ", ".join(f"{key}={value}" for key, value in recipe.items()))
    for result in results:
        megabytes = result["weight_bytes"] / 1e6
        print(
            f"{result['threads']} threads, {result['tier']}, {megabytes:.0f} MB in {result['load_s']:.2f} s,"
        )
        print("tokens a second, median (best):")
        for name, speed in result.items():
            if isinstance(speed, dict):
                print(f"  {name:12} {speed['median']:8.1f} ({speed['best']:.1f})")


if __name__ == "__main__":
    main()
