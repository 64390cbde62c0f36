"""What precision costs: perplexity on ShareGPT text of each kind of weights and KV cache, beside float32.

    python benchmarks/quality.py [--tokens 16384] [--variants float32 int8] [--resume] [--json] [--publish]

The text is cut into windows of `--window` tokens; every token but the first of a window counts, by the prompt
logprobs of the engine itself, so chunking, paged cache and batching are what they are when it serves.
Variants whose result is in `--out` already (same model, tokens and window) are kept with `--resume`.
`--publish` writes docs/results/quality.json and the table in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sharegpt import cache_folder, conversations

from ridgeline import LLM, SamplingParams, __version__
from ridgeline.cli.labs import machine
from ridgeline.engine.options import CHOICES

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "docs" / "results" / "quality.json"
PAGE = REPOSITORY / "docs" / "performance.md"
BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"

VARIANTS: dict[str, dict[str, str]] = {
    "float32": {"backend": "reference", "weights": "float32", "kv_dtype": "float32"},
    "bf16": {"weights": "bf16", "kv_dtype": "bf16"},
    "int8": {"weights": "int8", "kv_dtype": "bf16"},
    "int4": {"weights": "int4", "kv_dtype": "bf16"},
    "default": {},
    "bf16, int8 KV": {"weights": "bf16", "kv_dtype": "int8"},
    "int8, int8 KV": {"weights": "int8", "kv_dtype": "int8"},
    "int4, int8 KV": {"weights": "int4", "kv_dtype": "int8"},
}
"""float32 is the definition; the rest run on the kernels."""
OPT_IN = 1.01
"""More than 1% of perplexity above float32's must be asked for."""


def windows(llm: LLM, num_tokens: int, window: int) -> list[list[int]]:
    """Token windows of conversations, one after the other, `num_tokens` in all (about)."""
    found: list[list[int]] = []
    count = 0
    for turns in conversations():
        ids = llm.tokenizer.encode("\n\n".join(text for _, text in turns), True)[:window]
        if len(ids) < min(64, window):
            continue
        found.append(ids)
        count += len(ids)
        if count >= num_tokens:
            break
    return found


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Perplexity of one variant: exp of the mean negative log probability."""
    options: dict[str, Any] = {
        "max_model_len": args.window + 1,
        "kv_memory_bytes": 256 << 20,
        **VARIANTS[name],
    }
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    start = time.monotonic()
    total, count = 0.0, 0
    with LLM(args.model, **options) as llm:
        texts = windows(llm, args.tokens, args.window)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(name, total=len(texts))
            for at in range(0, len(texts), args.batch):
                for output in llm.generate(texts[at : at + args.batch], params, progress_bar=False):
                    own = [entry.token.logprob for entry in output.prompt_logprobs if entry is not None]
                    total, count = total - sum(own), count + len(own)
                    bars.advance(task)
        config = llm.config
    return {
        "variant": name,
        "weights": config.weights,
        "head_weights": config.head_weights,
        "kv_dtype": config.kv_dtype,
        "backend": config.backend,
        "perplexity": math.exp(total / count),
        "tokens": count,
        "seconds": time.monotonic() - start,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown; ratios to float32 where that was measured."""
    base = next((each["perplexity"] for each in results if each["variant"] == "float32"), None)
    lines = [
        "| variant | weights | head | KV cache | perplexity | against float32 |",
        "|---|---|---|---|---:|---:|",
    ]
    for each in results:
        ratio = f"{each['perplexity'] / base - 1:+.2%}" if base else "-"
        if base and each["perplexity"] / base > OPT_IN:
            ratio += " (opt-in)"
        lines.append(
            f"| {each['variant']} | {each['weights']} | {each['head_weights']} | {each['kv_dtype']} "
            f"| {each['perplexity']:.3f} | {ratio} |"
        )
    return "\n".join(lines)


def publish(document: dict[str, Any]) -> None:
    """The results file, and its table between the marks of the page."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=2) + "\n")
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    recipe = document["recipe"]
    tokens = max(each["tokens"] for each in document["results"])
    note = f"{recipe['model']}, {tokens:,} tokens of ShareGPT in windows of {recipe['window']}."
    PAGE.write_text(f"{head}{BEGIN}\n{table(document['results'])}\n\n{note}\n{END}{tail}")


def main() -> None:
    """Measure variant by variant, keeping each as soon as it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    available = [name for name, o in VARIANTS.items() if o.get("kv_dtype", "auto") in CHOICES["kv_dtype"]]
    parser.add_argument("--model", default=None)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8, help="windows at a time")
    parser.add_argument("--variants", nargs="+", default=available, choices=available)
    parser.add_argument("--out", type=Path, default=cache_folder() / "quality.json")
    parser.add_argument("--resume", action="store_true", help="keep the variants that --out has")
    parser.add_argument("--publish", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    recipe = {"model": args.model or "smollm2-135m", "tokens": args.tokens, "window": args.window}
    kept: dict[str, dict[str, Any]] = {}
    if args.resume and args.out.is_file():
        before = json.loads(args.out.read_text())
        if before["recipe"] == recipe:
            kept = {each["variant"]: each for each in before["results"]}
    document: dict[str, Any] = {}
    for name in args.variants:
        if name not in kept:
            kept[name] = measure(name, args)
        order = [each for each in VARIANTS if each in kept]
        document = {
            "recipe": recipe,
            "version": __version__,
            "machine": machine(),
            "results": [kept[each] for each in order],
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=2) + "\n")
        print(f"{name}: {kept[name]['perplexity']:.4f}", file=sys.stderr)
    if args.publish:
        publish(document)
    print(json.dumps(document, indent=2) if args.json else table(document["results"]))


if __name__ == "__main__":
    main()
