"""`ridgeline generate`: one prompt, streamed to the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ridgeline.cli.flags import EngineFlags, Json, SamplingFlags, flattened
from ridgeline.cli.printing import load_progress, print_json, print_table

if TYPE_CHECKING:
    from ridgeline.engine.outputs import CompletionDelta, PositionLogprobs, RequestOutput, Usage

_DEFAULT_ENGINE = EngineFlags()
_DEFAULT_SAMPLING = SamplingFlags()


@dataclass
class Collected:
    """A completion as its deltas come in, with the times of its first and last token."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    usage: Usage | None = None

    def add(self, delta: CompletionDelta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or ()
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
            self.error, self.usage = delta.error, delta.usage


@dataclass
class Streamed:
    """All completions of one request and when tokens came, in seconds after the request was made."""

    completions: list[Collected]
    ttft_s: float = 0.0
    total_s: float = 0.0
    num_first_tokens: int = 0
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None

    @property
    def num_tokens(self) -> int:
        return sum(len(completion.token_ids) for completion in self.completions)

    @property
    def tokens_per_s(self) -> float | None:
        """Decode speed: tokens after the first delta over the time after it; None when there are none."""
        rest, seconds = self.num_tokens - self.num_first_tokens, self.total_s - self.ttft_s
        return rest / seconds if rest > 0 and seconds > 0 else None


def collect(deltas: Iterable[CompletionDelta], n: int, show: bool) -> Streamed:
    """Read a stream to its end; with `show` the text is written as it comes."""
    streamed = Streamed([Collected() for _ in range(n)])
    start = time.perf_counter()
    for delta in deltas:
        streamed.total_s = time.perf_counter() - start
        if delta.token_ids and not streamed.num_first_tokens:
            streamed.ttft_s, streamed.num_first_tokens = streamed.total_s, len(delta.token_ids)
        streamed.completions[delta.index].add(delta)
        if show and delta.text:
            sys.stdout.write(delta.text)
            sys.stdout.flush()
    return streamed


def whole(output: RequestOutput) -> Streamed:
    """An output that came in one piece (prompt logprobs do not stream), without times."""
    completions = [
        Collected(c.text, list(c.token_ids), list(c.logprobs or ()), c.finish_reason, c.stop_reason, c.error)
        for c in output.completions
    ]
    completions[0].usage = output.usage
    return Streamed(completions, prompt_logprobs=output.prompt_logprobs)


@flattened
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from stdin.")],
    model: Annotated[str | None, typer.Option("--model", help="As in `ridgeline info MODEL`.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="System message; only with --chat.")] = None,
    sampling: SamplingFlags = _DEFAULT_SAMPLING,
    engine: EngineFlags = _DEFAULT_ENGINE,
    json: Json = False,
) -> None:
    """Continue a prompt and stream the text."""
    from ridgeline.engine.errors import InvalidParameter

    params = sampling.params()
    if system is not None and not chat:
        raise InvalidParameter("system", "a system message needs --chat")
    text = sys.stdin.read() if prompt == "-" else prompt
    start = time.perf_counter()
    with load_progress(quiet=json or not sys.stderr.isatty()) as progress:
        llm = engine.load(model, progress)
    load_s = time.perf_counter() - start
    with llm:
        rendered = llm.render_chat(_messages(system, text)) if chat else text
        if params.prompt_logprobs is None:
            stream = llm.stream(rendered, params, add_special_tokens=not chat)
            streamed = collect(stream, params.n, show=not json and params.n == 1)
        else:
            streamed = whole(llm.generate(rendered, params, add_special_tokens=not chat)[0])
    if json:
        print_json(_report(llm.model_name, text, streamed, load_s))
    else:
        _print_rest(streamed, shown=params.n == 1 and params.prompt_logprobs is None)
    errors = [completion.error for completion in streamed.completions if completion.error]
    if errors:
        print(f"error: generation: {errors[0]}", file=sys.stderr)
        raise typer.Exit(1)


def _messages(system: str | None, text: str) -> list[dict[str, str]]:
    before = [{"role": "system", "content": system}] if system is not None else []
    return [*before, {"role": "user", "content": text}]


def _report(model: str, prompt: str, streamed: Streamed, load_s: float) -> dict[str, Any]:
    first = streamed.completions[0]
    usages = [completion.usage for completion in streamed.completions if completion.usage]
    return {
        "model": model,
        "prompt": prompt,
        "text": first.text,
        "token_ids": first.token_ids,
        "finish_reason": first.finish_reason,
        "completions": [_completion(index, item) for index, item in enumerate(streamed.completions)],
        "usage": {
            "num_prompt_tokens": usages[0].num_prompt_tokens if usages else None,
            "num_generated_tokens": streamed.num_tokens,
            "num_cached_tokens": sum(usage.num_cached_tokens for usage in usages),
        },
        "prompt_logprobs": streamed.prompt_logprobs,
        "timings": {
            "load_s": round(load_s, 4),
            "ttft_s": round(streamed.ttft_s, 4),
            "total_s": round(streamed.total_s, 4),
            "tokens_per_s": streamed.tokens_per_s and round(streamed.tokens_per_s, 2),
        },
    }


def _completion(index: int, item: Collected) -> dict[str, Any]:
    return {
        "index": index,
        "text": item.text,
        "token_ids": item.token_ids,
        "finish_reason": item.finish_reason,
        "stop_reason": item.stop_reason,
        "logprobs": item.logprobs or None,
    }


def _print_rest(streamed: Streamed, shown: bool) -> None:
    """What did not stream: the end of the line, several completions, the logprobs."""
    several = len(streamed.completions) > 1
    for index, completion in enumerate(streamed.completions):
        text = "" if shown else completion.text
        print(f"[{index}] {text}" if several else text)
        if completion.logprobs:
            rows = [
                (p.token.token_id, repr(p.token.text), p.token.logprob, p.token.rank, _alternatives(p))
                for p in completion.logprobs
            ]
            print_table(("id", "token", "logprob", "rank", "likeliest"), rows)


def _alternatives(position: PositionLogprobs) -> str:
    return "  ".join(f"{top.text!r} {top.logprob:.2f}" for top in position.top)
