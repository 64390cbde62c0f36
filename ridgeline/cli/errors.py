"""An exception as the one line that a user reads, and the exit code that goes with it."""

from __future__ import annotations

import errno

import typer

EXIT_BUG = 1
EXIT_MISTAKE = 2

# typer carries its own copy of click from 0.27 on; before, it imports click. Both have this base.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def describe(error: Exception) -> tuple[str, int]:
    """`("error: FIELD: message", exit code)`; code 2 for a mistake of the caller, 1 for a bug of ours."""
    if isinstance(error, _UsageError):
        return _usage(error), EXIT_MISTAKE
    if _is_mistake(error):
        return f"error: {_one_line(error)}", EXIT_MISTAKE
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {error.filename}: {error.strerror}", EXIT_MISTAKE
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "error: output: no space left on the device", EXIT_MISTAKE
    if isinstance(error, MemoryError):
        return "error: memory: not enough of it; try a smaller --kv-memory or a smaller model", EXIT_MISTAKE
    hint = "this is a bug; RIDGELINE_DEBUG=1 shows where"
    return f"error: {type(error).__name__}: {_one_line(error)} ({hint})", EXIT_BUG


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    text = getattr(error, "format_message", error.__str__)()
    hint = f" (see `{context.command_path} --help`)" if context is not None else ""
    return f"error: {' '.join(text.split())}{hint}"


def _is_mistake(error: Exception) -> bool:
    from ridgeline.engine.errors import RidgelineError
    from ridgeline.facts.errors import MalformedFile, UnsupportedFeature

    return isinstance(error, RidgelineError | MalformedFile | UnsupportedFeature)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
