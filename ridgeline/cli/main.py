"""The command `ridgeline`: it gathers the verbs and turns every error into one line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import typer

from ridgeline.cli.chat import chat
from ridgeline.cli.errors import describe
from ridgeline.cli.explain import explain
from ridgeline.cli.generate import generate
from ridgeline.cli.info import info
from ridgeline.cli.lab import lab
from ridgeline.cli.pull import pull
from ridgeline.cli.roofline import roofline
from ridgeline.cli.serve import serve
from ridgeline.cli.version import version

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

app = typer.Typer(
    name="ridgeline",
    help="Serve and explain language models. Without a MODEL every command takes SmolLM2-135M-Instruct.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verb in (serve, generate, chat, explain, info, pull, roofline, lab, version):
    app.command()(_verb)


def main() -> None:
    """The console script: run the command line of this process and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing but a bug's hint leaves a trace on stderr."""
    try:
        result = app(args=list(arguments) or ["--help"], prog_name="ridgeline", standalone_mode=False)
        sys.stdout.flush()
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return EXIT_BROKEN_PIPE
    except SystemExit as stop:  # typer's own end for a broken pipe; uvicorn's when it cannot start
        return EXIT_BROKEN_PIPE if isinstance(stop.__context__, BrokenPipeError) else _exit_code(stop)
    except Exception as error:
        if os.environ.get("RIDGELINE_DEBUG"):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _discard_output()
        message, code = describe(error)
        if message:
            print(message, file=sys.stderr)
        return code
    return result if isinstance(result, int) else 0


def _discard_output() -> None:
    """The interpreter flushes stdout once more as it ends: let it flush into nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_code(stop: SystemExit) -> int:
    return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


if __name__ == "__main__":
    main()
