"""A server process over a simulated executor: `-m tests.serve.simulated_server ENGINE_JSON SERVER_JSON`."""

from __future__ import annotations

import json
import sys

from ridgeline.serve.options import ServerOptions
from ridgeline.serve.server import run
from tests.serve.engines import make_engine


def main() -> None:
    engine, options = (json.loads(text) for text in (*sys.argv[1:], "{}", "{}")[:2])
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    run(
        lambda: make_engine(**engine)[0],
        ServerOptions(**{"port": 0, "log_level": "error", **options}),
        on_ready=lambda address: print(address, flush=True),
    )


if __name__ == "__main__":
    main()
