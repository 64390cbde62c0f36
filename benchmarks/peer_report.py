"""Tables and a plot of what `peers.py` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Medians = dict[tuple[int, str, str], float]
OURS = "ridgeline"
LOWER = ("ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms", "cold_s", "peak_rss_mb", "installed_mb")
FIGURES = (
    "decode_128", "decode_1024", "prefill_512", "prefill_2048", "aggregate_8", "aggregate_32", "aggregate_64",
    "offline", "http", *LOWER,
)  # fmt: skip


def figures_of(found: Medians) -> list[str]:
    """The figures that there are, in the order of `FIGURES`."""
    there = {figure for _, _, figure in found}
    return [figure for figure in FIGURES if figure in there] + sorted(there - set(FIGURES))


def best_peer(
    found: Medians, bits: dict[str, int], threads: int, ours: str, figure: str
) -> tuple[str, float] | None:
    """The best peer with at least as many bits a weight: (name, how many times better ours is)."""
    mine = found.get((threads, ours, figure))
    best: tuple[str, float] | None = None
    for name, own in bits.items():
        theirs = found.get((threads, name, figure))
        if name.startswith(OURS) or own < bits[ours] or theirs is None or mine is None or not theirs * mine:
            continue
        ratio = theirs / mine if figure in LOWER else mine / theirs
        if best is None or ratio < best[1]:
            best = (name, ratio)
    return best


def print_report(document: dict[str, Any], found: Medians, bits: dict[str, int]) -> None:
    """One table of medians and one of ratios for each number of threads."""
    recipe, machine = document["recipe"], document["machine"]
    print(f"recipe: {', '.join(f'{key}={value}' for key, value in recipe.items())}")
    print(f"{machine['cpu']}, {machine['num_cores']} cores; ridgeline {document['version']}; medians\n")
    for threads in sorted({t for t, _, _ in found}):
        names = [
            name for name in bits if any((threads, name, figure) in found for figure in figures_of(found))
        ]
        print(f"{threads} thread{'s' if threads > 1 else ''}")
        print(f"  {'':14}" + "".join(f"{name:>16}" for name in names))
        for figure in figures_of(found):
            cells = [found.get((threads, name, figure)) for name in names]
            print(
                f"  {figure:14}" + "".join(f"{'-' if cell is None else f'{cell:,.4g}':>16}" for cell in cells)
            )
        print("\n  times better than the best peer with as many bits a weight or more")
        for ours in (name for name in names if name.startswith(OURS)):
            for figure in figures_of(found):
                best = best_peer(found, bits, threads, ours, figure)
                if best is not None:
                    print(f"  {ours:16} {figure:14} {best[1]:6.2f}x  {best[0]}")
        print()
    for key, reason in document["failed"].items():
        print(f"not measured: {key}: {reason}")


def draw(path: Path, found: Medians) -> None:
    """Bars of the throughput figures; nothing where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figures = [figure for figure in figures_of(found) if figure not in LOWER]
    threads = sorted({t for t, _, _ in found})
    if not figures:
        return
    picture = Figure(figsize=(2.2 * len(figures) + 2, 3.2 * len(threads)), layout="constrained")
    axes = picture.subplots(len(threads), len(figures), squeeze=False)
    names = list(dict.fromkeys(name for _, name, _ in found))
    for row, count in enumerate(threads):
        for column, figure in enumerate(figures):
            axis = axes[row][column]
            values = [found.get((count, name, figure), 0.0) for name in names]
            colors = ["C1" if name.startswith(OURS) else "C0" for name in names]
            axis.barh(names[::-1], values[::-1], color=colors[::-1])
            axis.set_title(f"{figure}, {count} thr.", fontsize=9)
            axis.tick_params(labelsize=7)
            if column:
                axis.set_yticklabels([])
    picture.suptitle("tokens a second", fontsize=10)
    picture.savefig(path, dpi=100, metadata={"Software": None})
