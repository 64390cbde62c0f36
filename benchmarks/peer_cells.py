"""What `peers.py` measures: each cell turns an entrant and the workload into named figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peer_entrants import PORT, Entrant, Server, Unavailable
from peer_http import Load, percentile
from sharegpt import questions_and_answers

from ridgeline.engine.source import read_header, resolve_source
from ridgeline.engine.tokenizing import load_tokenizer

Figures = dict[str, float]


class Workload:
    """Prompts as token ids, the same for all: plain text in pieces, and ShareGPT requests."""

    def __init__(self, model: str | None, num_requests: int, quick: bool) -> None:
        source = resolve_source(model)
        header = read_header(source)
        self.tokenizer = load_tokenizer(source, None if header is None else header.metadata)
        self.quick = quick
        self.requests: list[tuple[list[int], int]] = []
        text: list[int] = []
        needed = 4_096 if quick else 64 * 512 + 8_192
        for question, answer in questions_and_answers():
            asked = self.tokenizer.encode(question, True)
            told = self.tokenizer.encode(answer, False)
            text += asked + told
            fits = 4 <= len(asked) <= 256 and 8 <= len(told) <= 384
            if fits and len(self.requests) < num_requests:
                self.requests.append((asked, min(len(told), 8) if quick else len(told)))
            if len(self.requests) == num_requests and len(text) >= needed:
                break
        self._text = text

    def prompt(self, num_tokens: int, number: int = 0) -> list[int]:
        """A prompt of that many tokens; no two numbers share a prefix."""
        at = number * num_tokens % (len(self._text) - num_tokens)
        return self._text[at : at + num_tokens]


@dataclass(frozen=True)
class Cell:
    """`rounds` caps how often a heavy one is repeated."""

    run: Callable[[Entrant, Workload], Figures]
    rounds: int | None = None


def decode(entrant: Entrant, work: Workload) -> Figures:
    """Batch 1."""
    contexts, tokens = ((16, 64), 4) if work.quick else ((128, 1024), 48)
    return {f"decode_{c}": entrant.decode_rate(work.prompt(c), tokens) for c in contexts}


def prefill(entrant: Entrant, work: Workload) -> Figures:
    """One prompt, one token."""
    return {
        f"prefill_{n}": entrant.prefill_rate(work.prompt(n)) for n in ((64,) if work.quick else (512, 2048))
    }


def aggregate(entrant: Entrant, work: Workload) -> Figures:
    """Many sequences; as many tokens as it takes until all of them decode, and 32 more."""
    found = {}
    context = 32 if work.quick else 512
    for batch in (2,) if work.quick else (8, 32, 64):
        prompts = [work.prompt(context, number) for number in range(batch)]
        try:
            found[f"aggregate_{batch}"] = entrant.aggregate_rate(prompts, batch + (8 if work.quick else 40))
        except Unavailable:
            if not found:
                raise
    return found


def offline(entrant: Entrant, work: Workload) -> Figures:
    """64 requests, 32 at a time."""
    return {"offline": entrant.offline_rate(work.requests, 32)}


def http(entrant: Entrant, work: Workload) -> Figures:
    """The same over HTTP, 8 at a time."""
    command = entrant.server(PORT)
    if command is None:
        raise Unavailable("it has no OpenAI-compatible server here")
    with Server(entrant, command) as server:
        Load(server, [(prompt, 4) for prompt, _ in work.requests[:2]], 2)
        load = Load(server, work.requests, 8)
        entrant.peak_bytes = max(entrant.peak_bytes, server.peak_bytes())
    return {
        "http": load.tokens / load.seconds,
        "ttft_p50_ms": 1e3 * percentile(load.ttft_s, 0.5),
        "ttft_p99_ms": 1e3 * percentile(load.ttft_s, 0.99),
        "itl_p50_ms": 1e3 * percentile(load.itl_s, 0.5),
        "itl_p99_ms": 1e3 * percentile(load.itl_s, 0.99),
    }


def cold(entrant: Entrant, work: Workload) -> Figures:
    """A fresh process; the file is in the page cache."""
    return {"cold_s": entrant.cold_s(work.prompt(8))}


def size(entrant: Entrant, work: Workload) -> Figures:
    """After the other cells: the largest resident size that was seen, and what is installed."""
    found = {"installed_mb": entrant.installed_bytes() / 1e6}
    if entrant.peak_bytes:
        found["peak_rss_mb"] = entrant.peak_bytes / 1e6
    return found


CELLS: dict[str, Cell] = {
    "decode": Cell(decode),
    "prefill": Cell(prefill),
    "aggregate": Cell(aggregate, 2),
    "offline": Cell(offline, 2),
    "http": Cell(http, 2),
    "cold": Cell(cold, 2),
    "size": Cell(size, 1),
}


def run_cell(cell: str, entrant: Entrant, entrants: list[Entrant], work: Workload) -> Figures:
    """Measure with every other entrant stopped. Raises Unavailable."""
    for other in entrants:
        if other is not entrant:
            other.pause()
    try:
        return CELLS[cell].run(entrant, work)
    finally:
        entrant.pause()
