"""`ridgeline pull`: bring a model onto this machine, with a progress bar."""

from __future__ import annotations

from typing import Annotated

import typer

from ridgeline.cli.flags import Json, Model
from ridgeline.cli.printing import download_progress, print_json


def pull(
    model: Model = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only look whether it is here already.")] = False,
    json: Json = False,
) -> None:
    """Bring a model onto this machine.

    Downloads it into the cache, or finds it there, and prints where it is.
    """
    from ridgeline.cost.memory import human_bytes
    from ridgeline.engine.source import resolve_source

    with download_progress(quiet=json) as progress:
        source = resolve_source(model, progress=progress, offline=offline)
    files = (
        [source.path] if source.path.is_file() else sorted(p for p in source.path.iterdir() if p.is_file())
    )
    num_bytes = sum(path.stat().st_size for path in files)
    if json:
        print_json(
            {"name": source.name, "kind": source.kind, "path": str(source.path), "num_bytes": num_bytes}
        )
    else:
        print(f"{source.name}: {source.path} ({human_bytes(num_bytes)})")
