"""A MkDocs hook: the page reference/cli.md is made from the command itself, so it is never out of date."""

from __future__ import annotations

import os
from typing import Any

from mkdocs.structure.files import File, Files

PAGE = "reference/cli.md"
INTRODUCTION = """# Command line

Every verb has `--json` (one JSON object on stdout, nothing else) and `--help`.
Exit codes: 0 done, 1 a lab or a request failed, 2 a mistake in what was asked (one line on stderr:
`error: FIELD: message`), 130 interrupted. `RIDGELINE_DEBUG=1` shows the traceback of an error.

This page is generated from the commands.
"""


def cli_reference() -> str:
    """The help text of every verb as one Markdown page."""
    os.environ["COLUMNS"] = "100"
    import typer

    from ridgeline.cli.main import app

    group: Any = typer.main.get_command(app)
    parts = [INTRODUCTION]
    with group.make_context("ridgeline", [], resilient_parsing=True) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            with command.make_context(name, [], parent=context, resilient_parsing=True) as verb:
                parts.append(f"## ridgeline {name}\n\n```text\n{command.get_help(verb)}\n```\n")
    return "\n".join(parts)


def on_files(files: Files, config: Any) -> Files:
    """Add the generated page."""
    files.append(File.generated(config, PAGE, content=cli_reference()))
    return files
