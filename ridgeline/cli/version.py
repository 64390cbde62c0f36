"""`ridgeline version`: which version this is and what it would run on."""

from __future__ import annotations

import platform
from importlib.util import find_spec
from typing import Annotated

import typer

from ridgeline import __version__
from ridgeline.cli.printing import print_json


def version(json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Print the version and what it runs on."""
    facts = {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "native_kernels": find_spec("ridgeline.runtime.native._native") is not None,
    }
    if json:
        print_json(facts)
        return
    kernels = "native kernels" if facts["native_kernels"] else "no native kernels (numpy reference backend)"
    print(f"ridgeline {__version__}, Python {facts['python']}, {facts['platform']}, {kernels}")
