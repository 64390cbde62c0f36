"""`ridgeline chat`: talk to a model; the conversation so far is a prefix that the engine has cached."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ridgeline.cli.flags import EngineFlags, Json, Model, SamplingFlags, flattened
from ridgeline.cli.generate import Streamed, collect
from ridgeline.cli.printing import load_progress

if TYPE_CHECKING:
    from ridgeline.engine.llm import LLM
    from ridgeline.engine.outputs import CompletionDelta
    from ridgeline.engine.sampling_params import SamplingParams

_DEFAULT_ENGINE = EngineFlags()
_DEFAULT_SAMPLING = SamplingFlags()
_HELP = (
    "/reset forgets all, /system TEXT sets the system message, /stats switches figures, /quit ends, "
    "Ctrl-C cuts an answer short"
)


@flattened
def chat(
    model: Model = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="After each turn: tokens, cache hits, speed.")
    ] = False,
    sampling: SamplingFlags = _DEFAULT_SAMPLING,
    engine: EngineFlags = _DEFAULT_ENGINE,
    json: Json = False,
) -> None:
    """Talk to a model.

    With --json: one message a line on stdin, one JSON object a turn on stdout.
    """
    from ridgeline.engine.errors import InvalidParameter

    params = sampling.params()
    if params.n != 1:
        raise InvalidParameter("n", f"a conversation has one answer a turn, got {params.n}")
    with load_progress(quiet=json or not sys.stderr.isatty()) as progress:
        llm = engine.load(model, progress)
    with llm:
        talk = Conversation(llm, params, system, stats, json)
        if not json and sys.stdin.isatty():
            print(f"{llm.model_name}. {_HELP}.", file=sys.stderr)
        while (line := _read(json)) is not None:
            if line.strip() and not talk.take(line):
                break


def _read(json: bool) -> str | None:
    """The next line, None at the end of the input."""
    try:
        if sys.stdin.isatty() and not json:
            import readline  # noqa: F401  (arrow keys and history for input())
        return input("> " if sys.stdin.isatty() and not json else "")
    except EOFError:
        return None


class Conversation:
    """The messages so far. A turn renders all of them; what is new after the cached prefix is computed."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None, stats: bool, json: bool) -> None:
        self.llm, self.params = llm, params
        self.system, self.stats, self.json = system, stats, json
        self.messages: list[dict[str, Any]] = []

    def take(self, line: str) -> bool:
        """A command or a message of the user; False ends the conversation."""
        if not line.startswith("/"):
            self._turn(line)
            return True
        command, _, rest = line.partition(" ")
        if command in ("/quit", "/exit"):
            return False
        if command == "/reset":
            self.messages.clear()
        elif command == "/system":
            self.system = rest.strip() or None
        elif command == "/stats":
            self.stats = not self.stats
        else:
            print(_HELP, file=sys.stderr)
        return True

    def _turn(self, text: str) -> None:
        from ridgeline.engine.errors import InvalidParameter

        before = [{"role": "system", "content": self.system}] if self.system is not None else []
        messages = [*before, *self.messages, {"role": "user", "content": text}]
        try:
            stream = self.llm.stream(self.llm.render_chat(messages), self.params, add_special_tokens=False)
            by_hand = not self.json and sys.stdin.isatty()
            streamed = collect(_until_interrupted(stream) if by_hand else stream, 1, show=not self.json)
        except InvalidParameter as error:  # too long, for example: say so and go on
            print(f"error: {error} (/reset forgets the conversation)", file=sys.stderr)
            return
        answer = streamed.completions[0].text
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        self._report(streamed)

    def _report(self, streamed: Streamed) -> None:
        from json import dumps

        completion = streamed.completions[0]
        usage = completion.usage
        figures = {
            "num_prompt_tokens": usage.num_prompt_tokens if usage else 0,
            "num_cached_tokens": usage.num_cached_tokens if usage else 0,
            "num_generated_tokens": streamed.num_tokens,
            "ttft_s": round(streamed.ttft_s, 4),
            "tokens_per_s": streamed.tokens_per_s and round(streamed.tokens_per_s, 1),
        }
        if self.json:
            answer = {"text": completion.text, "finish_reason": completion.finish_reason, **figures}
            print(dumps(answer, ensure_ascii=False), flush=True)
            return
        print()
        if self.stats:
            print(
                f"[prompt {figures['num_prompt_tokens']} tokens, {figures['num_cached_tokens']} cached; "
                f"first token after {streamed.ttft_s * 1e3:.0f} ms, "
                f"{streamed.num_tokens} tokens at {streamed.tokens_per_s or 0:.0f}/s]",
                file=sys.stderr,
            )


def _until_interrupted(stream: Generator[CompletionDelta, None, None]) -> Iterator[CompletionDelta]:
    """The stream up to the first Ctrl-C, which ends it between two steps; a second one interrupts as ever."""
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        for delta in stream:
            yield delta
            if interrupted:
                break
    finally:
        signal.signal(signal.SIGINT, before)
        stream.close()
