"""What the verbs print with: JSON, plain tables, sizes, and the progress of a load on stderr."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

Progress = Callable[[str, float | None], None]
"""`progress(stage, fraction)`: how far a stage of loading is, 0 to 1; None where that is not known."""

_NUMBERS = re.compile(r"\[\s+-?[\d.e+-]+(?:,\s+-?[\d.e+-]+)*\s+\]")
"""A list of numbers over several lines (a line break within a string would be escaped)."""


def print_json(value: object) -> None:
    """One JSON document on stdout, lists of numbers on one line."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=plain)
    print(_NUMBERS.sub(lambda match: " ".join(match[0].split()), text))


def plain(value: object) -> object:
    """Dataclasses, tuples, sets, mappings and bytes as what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, bytes):
        return list(value)
    return str(value)


def human_count(count: float) -> str:
    """`134515008` -> `"134.5M"`."""
    for unit in ("", "K", "M", "B"):
        if abs(count) < 1000:
            return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f}T"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """A table on stdout, wrapped to the terminal; numbers stand to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table, markup=False) if rows else console.print(title or "", markup=False)


def _cell(value: object) -> str:
    from rich.markup import escape

    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(str(value))


@contextmanager
def load_progress(quiet: bool = False) -> Iterator[Progress | None]:
    """Progress of a load on stderr: a bar per stage on a terminal, else one line per stage.

    Yields None when `quiet`. Everything drawn is wiped away at the end.
    """
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        seen: set[str] = set()

        def say(stage: str, fraction: float | None) -> None:
            if stage not in seen:
                seen.add(stage)
                print(f"{stage} ...", file=sys.stderr, flush=True)

        yield say


@contextmanager
def download_progress(quiet: bool = False) -> Iterator[Callable[[int, int], None] | None]:
    """`report(done_bytes, total_bytes)` as a bar on a terminal's stderr, else a line every tenth.

    Yields None when `quiet`.
    """
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("downloading"),
            progress.BarColumn(),
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task("downloading", total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total or None)
    else:
        tenths = 0

        def say(done: int, total: int) -> None:
            nonlocal tenths
            if total and done * 10 // total > tenths:
                tenths = done * 10 // total
                from ridgeline.cost.memory import human_bytes

                print(f"downloaded {human_bytes(done)} of {human_bytes(total)}", file=sys.stderr, flush=True)

        yield say


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, progress.TaskID] = {}

        def report(stage: str, fraction: float | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None if fraction is None else 1.0)
            bars.update(tasks[stage], completed=fraction or 0.0, total=None if fraction is None else 1.0)

        yield report
