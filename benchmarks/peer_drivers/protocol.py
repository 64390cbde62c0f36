"""What a driver of a peer speaks with `peers.py`: JSON lines on stdin and stdout, standard library only.

    -> {"prompts": [[ids], ...], "max_tokens": [n, ...], "concurrency": 32}
    <- {"events": [[seconds since the request, index, tokens], ...]}

A driver runs in its peer's environment. It calls `serve(run)` with `run(prompts, max_tokens, concurrency,
tell)`: generate greedily, exactly that many tokens each, at most `concurrency` at a time, and call
`tell(index, tokens)` whenever tokens of a prompt have come. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

Tell = Callable[[int, int], None]
Run = Callable[[list, list, int, Tell], None]


def open_answers():
    """The real stdout for answers; everything else that prints goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve(run: Run, answers) -> None:
    """Say ready, then answer until stdin ends."""
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        events: list = []
        start = time.perf_counter()

        def tell(index: int, tokens: int, events=events, start=start) -> None:
            events.append((time.perf_counter() - start, index, tokens))

        try:
            run(command["prompts"], command["max_tokens"], command["concurrency"], tell)
            reply = {"events": events}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(reply), file=answers, flush=True)
