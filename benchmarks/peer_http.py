"""A small streaming load for `peers.py`: so many requests at once, the time of every chunk."""

from __future__ import annotations

import http.client
import itertools
import json
import queue
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peer_entrants import Server


def stream(server: Server, prompt: list[int], max_tokens: int) -> list[float]:
    """Seconds from sending a completion request to each chunk with a token."""
    body = {"model": server.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    body |= {"stream": True, "ignore_eos": True}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"HTTP {answer.status}: {answer.read()[:200]!r}")
    times = []
    for line in answer:
        if line.startswith(b"data: {"):
            times.append(time.perf_counter() - start)
    connection.close()
    return times[:max_tokens]


class Load:
    """All requests, `concurrency` at a time. Attributes: seconds, tokens, ttft_s, itl_s."""

    def __init__(self, server: Server, requests: list[tuple[list[int], int]], concurrency: int) -> None:
        self.ttft_s: list[float] = []
        self.itl_s: list[float] = []
        self.tokens = sum(count for _, count in requests)
        self.failures: list[str] = []
        waiting: queue.SimpleQueue[tuple[list[int], int]] = queue.SimpleQueue()
        for request in requests:
            waiting.put(request)
        threads = [threading.Thread(target=self._work, args=(server, waiting)) for _ in range(concurrency)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.seconds = time.perf_counter() - start
        if self.failures:
            from peer_entrants import Unavailable

            raise Unavailable(f"{len(self.failures)} requests failed, first: {self.failures[0]}")

    def _work(self, server: Server, waiting: queue.SimpleQueue[tuple[list[int], int]]) -> None:
        while True:
            try:
                prompt, count = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                times = stream(server, prompt, count)
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                self.failures.append(str(error))
                return
            if times:
                self.ttft_s.append(times[0])
                self.itl_s += [after - before for before, after in itertools.pairwise(times)]


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
