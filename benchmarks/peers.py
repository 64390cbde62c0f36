"""Ridgeline beside its peers on this machine: the same model, the same prompts, in turns; prints ratios.

    python benchmarks/peers.py                         # all that is installed, two threads and one
    python benchmarks/peers.py --install --list        # make the peers' environments, say what is there
    python benchmarks/peers.py --only ridgeline llama.cpp --cells decode prefill --rounds 3 --threads 2
    python benchmarks/peers.py --resume                # go on with what --out has, skip what is done
    python benchmarks/peers.py --report                # only print and plot what --out has

Every peer lives in an environment of its own under the cache folder and is a process of its own that keeps
its model loaded; while one is measured the others are stopped (SIGSTOP). A round measures each peer
once; rounds alternate; the median of rounds counts. Cells:

    decode       batch 1, tokens a second after a prompt of 128 and of 1,024 tokens
    prefill      tokens a second to the first token of a prompt of 512 and of 2,048 tokens
    aggregate    tokens a second of 8, 32 and 64 sequences of context 512, while all of them decode
    offline      64 ShareGPT requests, 32 at a time: output tokens a second, all told
    http         the same over HTTP, streamed, 8 at a time: TTFT and ITL, p50 and p99
    cold         process start to first token
    size         peak memory and installed bytes

A ratio is ours over the best peer whose weights have at least as many bits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from peer_cells import CELLS, Workload, run_cell
from peer_entrants import ENTRANTS, Entrant, Unavailable, peers_folder
from peer_report import draw, print_report

from ridgeline import __version__
from ridgeline.cli.labs import machine


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def available(names: list[str], threads: int, args: argparse.Namespace) -> list[Entrant]:
    """The entrants that can be had here; each other one costs one line."""
    found = []
    for name in names:
        entrant = ENTRANTS[name](name, args.model, threads)
        try:
            entrant.prepare(install=args.install, say=say)
        except Unavailable as reason:
            say(f"skipped {name}: {reason}")
            continue
        found.append(entrant)
    return found


def measure(
    document: dict[str, Any], entrants: list[Entrant], threads: int, args: argparse.Namespace
) -> None:
    """All rounds of all cells with one number of threads; `document` is written after every figure."""
    workload = Workload(args.model, args.requests, args.quick)
    results = document["results"]
    for cell in args.cells:
        for number in range(
            args.rounds if CELLS[cell].rounds is None else min(args.rounds, CELLS[cell].rounds)
        ):
            for entrant in entrants:
                key = f"{threads}/{entrant.name}/{cell}"
                done = results.setdefault(key, [])
                if len(done) > number or key in document["failed"]:
                    continue
                start = time.monotonic()
                try:
                    done.append(run_cell(cell, entrant, entrants, workload))
                except Unavailable as reason:
                    document["failed"][key] = str(reason)
                    say(f"{key}: {reason}")
                else:
                    say(f"{key} round {number + 1}: {_short(done[-1])} in {time.monotonic() - start:.0f} s")
                args.out.write_text(json.dumps(document, indent=1) + "\n")


def _short(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.4g}" for name, value in figures.items())


def medians(document: dict[str, Any]) -> dict[tuple[int, str, str], float]:
    """(threads, entrant, figure) -> median over rounds."""
    found: dict[tuple[int, str, str], list[float]] = {}
    for key, rounds in document["results"].items():
        threads, name, _ = key.split("/")
        for figures in rounds:
            for figure, value in figures.items():
                found.setdefault((int(threads), name, figure), []).append(value)
    return {key: statistics.median(values) for key, values in found.items()}


def new_document(args: argparse.Namespace) -> dict[str, Any]:
    """An empty one, or what `--out` has if it is of the same recipe."""
    recipe = {"model": args.model or "smollm2-135m", "requests": args.requests, "quick": args.quick}
    if (args.resume or args.report) and args.out.is_file():
        document = json.loads(args.out.read_text())
        if document["recipe"] == recipe or args.report:
            return document
    return {"recipe": recipe, "version": __version__, "machine": machine(), "results": {}, "failed": {}}


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=None, help="a GGUF file or a name; the default model if not given")
    parser.add_argument("--only", nargs="+", default=list(ENTRANTS), choices=list(ENTRANTS), metavar="PEER")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--rounds", type=int, default=5, help="heavy cells take fewer")
    parser.add_argument("--requests", type=int, default=64, help="ShareGPT requests of offline and http")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it work at all?")
    parser.add_argument(
        "--install", action="store_true", help="make environments that are missing (pip, cmake)"
    )
    parser.add_argument("--list", action="store_true", help="say what is available and stop")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=peers_folder() / "results.json")
    parser.add_argument("--plot", type=Path, help="PNG; beside --out if not given")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    document = new_document(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for threads in [] if args.report else args.threads:
        entrants = available(args.only, threads, args)
        if args.list:
            say(f"{threads} threads: {', '.join(entrant.name for entrant in entrants)}")
            continue
        try:
            if entrants:
                measure(document, entrants, threads, args)
        finally:
            for entrant in entrants:
                entrant.close()
    if args.list:
        return
    found = medians(document)
    bits = {name: make.bits for name, make in ENTRANTS.items()}
    plot = args.plot or args.out.with_suffix(".png")
    if args.json:
        rows = [{"threads": t, "entrant": n, "figure": f, "median": v} for (t, n, f), v in found.items()]
        print(json.dumps({**document, "medians": rows}, indent=1))
    else:
        print_report(document, found, bits)
    draw(plot, found)
    say(f"kept {args.out}, drawn {plot}")


if __name__ == "__main__":
    main()
