"""`ridgeline roofline`: what this machine can do at most, and how far a model's operations are from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ridgeline.cli.flags import Json, Model
from ridgeline.cli.printing import load_progress, print_json, print_table

if TYPE_CHECKING:
    from ridgeline.cli.printing import Progress
    from ridgeline.cost.roofline import Ceilings, Floor
    from ridgeline.engine.build import Prepared

SIZES = tuple(size << 10 for size in (16, 256, 1024, 8192, 32768, 131072, 524288))
"""Working sets in bytes: of each level of the caches, and beyond them."""
QUICK_SIZES = tuple(size << 10 for size in (16, 1024, 131072))
REPEATS, QUICK_REPEATS = 7, 2
MEASURE = "ridgeline.runtime.native.measure"
PREFILL_REPEATS, DECODE_REPEATS = 3, 15


def roofline(
    model: Model = None,
    batch: Annotated[int, typer.Option("--batch", "-b", help="Sequences that decode together.")] = 1,
    context: Annotated[
        int,
        typer.Option("--context", "-c", help="Tokens before the decoded one, and of the prefilled prompt."),
    ] = 512,
    num_threads: Annotated[
        int | None, typer.Option("--num-threads", "--threads", help="Threads; all cores if not given.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights in memory: auto, stored, bf16, int8 or int4.")
    ] = None,
    kv_dtype: Annotated[str | None, typer.Option(help="Number type of the KV cache.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Load the model and time each operation beside its floor.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few sizes, few repeats: 2 seconds.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the roofline into this PNG file.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
    json: Json = False,
) -> None:
    """Measure this machine's ceilings and place a model's operations under them.

    Bandwidth by working set, multiply-adds by type; then, for decode and prefill, what each operation
    reads and computes, which ceiling bounds it and the least time that it can take.
    """
    from ridgeline.engine.build import prepare
    from ridgeline.engine.options import EngineOptions

    _check(batch, context, num_threads)
    said: dict[str, Any] = {
        "num_threads": num_threads,
        "weights": weights or "auto",
        "kv_dtype": kv_dtype or "auto",
    }
    with load_progress(quiet=json) as progress:
        prepared = prepare(EngineOptions(model=model, offline=offline, backend="native", **said), progress)
        threads = prepared.config.num_threads
        ceilings = _ceilings(threads, quick, prepared.config.isa_tier, progress)
        rows = _rows(prepared, ceilings, batch, context)
        times = _times(prepared, batch, context, quick, progress) if measure else {}
    if plot is not None:
        _draw(plot, prepared, ceilings, rows, times)
    if json:
        print_json(_document(prepared, ceilings, rows, times, batch, context))
        return
    _print(prepared, ceilings, rows, times, batch, context)
    if plot is not None:
        print(f"drawn: {plot}")


def _check(batch: int, context: int, num_threads: int | None) -> None:
    from ridgeline.engine.errors import InvalidParameter

    for name, value, limit in (("batch", batch, 1024), ("context", context, 32768)):
        if not 1 <= value <= limit:
            raise InvalidParameter(name, f"must be between 1 and {limit}, got {value}")


def _ceilings(threads: int, quick: bool, tier: str, progress: Progress | None) -> Ceilings:
    import importlib

    native = importlib.import_module(MEASURE)
    ceilings: Ceilings = native.measure_ceilings(
        sorted({1, threads}),
        QUICK_SIZES if quick else SIZES,
        repeats=QUICK_REPEATS if quick else REPEATS,
        tier=tier,
        progress=progress,
    )
    return ceilings


def _rows(prepared: Prepared, ceilings: Ceilings, batch: int, context: int) -> list[Floor]:
    """The floors of decode, then of prefill (one sequence)."""
    from ridgeline.cost.roofline import Phase, floors, step_operations

    config = prepared.config
    found: list[Floor] = []
    phases: tuple[tuple[Phase, int], ...] = (("decode", batch), ("prefill", 1))
    for phase, sequences in phases:
        operations = step_operations(
            prepared.spec,
            phase,
            batch=sequences,
            context=context,
            weights=config.weights,
            head_weights=config.head_weights,
            kv_bytes_per_element=_kv_bytes(prepared),
            units=ceilings.units(config.num_threads),
        )
        found += floors(operations, ceilings, config.num_threads)
    return found


def _kv_bytes(prepared: Prepared) -> float:
    """Bytes of one K or V number in the cache, its share of a scale included."""
    spec, layout = prepared.spec, prepared.config.kv_layout(prepared.spec)
    return layout.layer_bytes_per_token / (2 * spec.num_kv_heads * spec.head_dim)


def _times(
    prepared: Prepared, batch: int, context: int, quick: bool, progress: Progress | None
) -> dict[str, dict[str, float]]:
    """Phase -> operation -> measured seconds."""
    import importlib

    native = importlib.import_module(MEASURE)
    report = None if progress is None else lambda done, total: progress("loading weights", done / total)
    steps = native.StepTimes(
        prepared.source,
        prepared.spec,
        prepared.config,
        num_threads=prepared.config.num_threads,
        max_tokens=max(batch, context),
        max_len=context + 1,
        progress=report,
    )
    try:
        steps.prepare(batch)
        if progress is not None:
            progress("timing steps", None)
        return {
            "decode": steps.measure("decode", batch, context, 5 if quick else DECODE_REPEATS),
            "prefill": steps.measure("prefill", 1, context, 1 if quick else PREFILL_REPEATS),
        }
    finally:
        steps.close()


def _print(
    prepared: Prepared,
    ceilings: Ceilings,
    rows: list[Floor],
    times: dict[str, dict[str, float]],
    batch: int,
    context: int,
) -> None:
    from ridgeline.cost.memory import human_bytes

    config = prepared.config
    print(f"{prepared.hardware.name}, {prepared.hardware.num_cores} cores, kernels of tier {ceilings.tier}\n")
    threads = sorted({point.num_threads for point in ceilings.bandwidth})
    heads = [_count(count, "thread") for count in threads]
    sizes = sorted({point.working_set_bytes for point in ceilings.bandwidth})
    print_table(
        ("working set", *heads),
        [
            (human_bytes(size), *(f"{ceilings.bytes_per_s(n, size) / 1e9:.1f} GB/s" for n in threads))
            for size in sizes
        ],
        title="Read bandwidth",
    )
    print_table(
        ("unit", *heads),
        [
            (unit, *(f"{ceilings.operations_per_s(n, unit) / 1e12:.2f} TOP/s" for n in threads))
            for unit in ceilings.units(threads[0])
        ],
        title="Multiply-adds (two operations each)",
    )
    for phase, what in (
        ("decode", f"Decode: {_count(batch, 'sequence')}, context {context}"),
        ("prefill", f"Prefill: {context} tokens"),
    ):
        mine = [row for row in rows if row.operation.phase == phase]
        title = f"{what}, {config.weights} weights, {_count(config.num_threads, 'thread')}"
        _print_phase(title, mine, times.get(phase))


def _print_phase(title: str, rows: list[Floor], times: dict[str, float] | None) -> None:
    columns = ["operation", "MB", "GFLOP", "FLOP/B", "bound by", "unit", "floor µs"]
    columns += ["measured µs", "reached"] if times else []
    table: list[tuple[object, ...]] = []
    for row in rows:
        each = row.operation
        line: list[object] = [
            each.name, each.num_bytes / 1e6, each.operations / 1e9, each.intensity, row.bound, each.unit,
            1e6 * row.seconds,
        ]  # fmt: skip
        table.append((*line, *_reached(times, each.name, row.seconds)))
    total = sum(row.seconds for row in rows)
    sums: list[object] = [
        "step",
        sum(row.operation.num_bytes for row in rows) / 1e6,
        sum(row.operation.operations for row in rows) / 1e9,
        "", "", "", 1e6 * total,
    ]  # fmt: skip
    if times:
        table.append(("other", "", "", "", "", "", "", 1e6 * times.get("other", 0.0), ""))
        measured = sum(times.values())
        sums += [1e6 * measured, f"{total / measured:.0%}"]
    table.append(tuple(sums))
    print_table(columns, table, title=title)


def _reached(times: dict[str, float] | None, name: str, floor_s: float) -> tuple[object, ...]:
    if not times:
        return ()
    measured = times.get(name, 0.0)
    return (1e6 * measured, f"{floor_s / measured:.0%}" if measured else "")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _document(
    prepared: Prepared,
    ceilings: Ceilings,
    rows: list[Floor],
    times: dict[str, dict[str, float]],
    batch: int,
    context: int,
) -> dict[str, Any]:
    config = prepared.config
    operations = []
    for row in rows:
        each, measured = row.operation, times.get(row.operation.phase, {}).get(row.operation.name)
        operations.append(
            {
                "phase": each.phase,
                "operation": each.name,
                "bytes": each.num_bytes,
                "operations": each.operations,
                "intensity": each.intensity,
                "unit": each.unit,
                "bound": row.bound,
                "memory_s": row.memory_s,
                "compute_s": row.compute_s,
                "floor_s": row.seconds,
                "measured_s": measured,
                "reached": row.seconds / measured if measured else None,
            }
        )
    return {
        "machine": prepared.hardware.name,
        "tier": ceilings.tier,
        "model": prepared.spec.name,
        "weights": config.weights,
        "head_weights": config.head_weights,
        "kv_dtype": config.kv_dtype,
        "num_threads": config.num_threads,
        "batch": batch,
        "context": context,
        "bandwidth": ceilings.bandwidth,
        "peaks": ceilings.peaks,
        "operations": operations,
        "other_s": {phase: spent.get("other", 0.0) for phase, spent in times.items()},
    }


def _draw(
    path: Path,
    prepared: Prepared,
    ceilings: Ceilings,
    rows: list[Floor],
    times: dict[str, dict[str, float]],
) -> None:
    """Roofs of every unit, and each operation at its intensity: hollow on the roof, filled as measured."""
    from ridgeline.cost.roofline import attainable
    from ridgeline.engine.errors import RidgelineError

    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RidgelineError("plot: matplotlib is missing; pip install 'ridgeline[lab]'") from None
    threads = prepared.config.num_threads
    step_bytes = sum(row.operation.num_bytes for row in rows if row.operation.phase == "decode")
    bandwidth = ceilings.bytes_per_s(threads, step_bytes)
    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    intensities = [2.0 ** (power / 4) for power in range(-12, 57)]
    for unit in ceilings.units(threads):
        peak = ceilings.operations_per_s(threads, unit)
        axes.plot(intensities, [attainable(x, bandwidth, peak) for x in intensities], color="0.6", lw=1.2)
        axes.text(intensities[-1], peak, unit, ha="right", va="bottom", fontsize=8, color="0.35")
    axes.text(0.2, 0.24 * bandwidth, f"{bandwidth / 1e9:.1f} GB/s", rotation=38, fontsize=8, color="0.35")
    for phase, marker in (("decode", "o"), ("prefill", "s")):
        for number, row in enumerate(row for row in rows if row.operation.phase == phase):
            each, color = row.operation, f"C{number}"
            reached = each.operations / row.seconds
            axes.plot(each.intensity, reached, marker, mfc="none", color=color)
            measured = times.get(phase, {}).get(each.name)
            if measured:
                axes.plot(each.intensity, each.operations / measured, marker, color=color)
            label = f"{each.name}" if phase == "decode" else None
            axes.plot([], [], "o", color=color, label=label)
    axes.plot([], [], "o", color="k", mfc="none", label="decode: the roof")
    axes.plot([], [], "s", color="k", mfc="none", label="prefill: the roof")
    if times:
        axes.plot([], [], "ok", label="measured")
    axes.set_xlabel("intensity: operations for each byte from memory")
    axes.set_ylabel("operations a second")
    axes.set_title(f"{prepared.spec.name}, {prepared.config.weights} weights, {_count(threads, 'thread')}")
    axes.grid(True, which="major", lw=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110, metadata={"Software": None})
