"""Offline use: a model in the caller's thread, without asyncio.

from ridgeline import LLM, SamplingParams

with LLM() as llm:
    print(llm.generate("The capital of France is", SamplingParams(temperature=0))[0].text)
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ridgeline.engine import interrupts
from ridgeline.engine.errors import EngineClosed, InvalidParameter
from ridgeline.engine.intake import Job
from ridgeline.engine.output_processor import OutputBuilder
from ridgeline.engine.outputs import CompletionDelta, RequestOutput
from ridgeline.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from ridgeline.engine.build import EngineParts, StageProgress

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]


class LLM:
    """A loaded model. Not thread-safe: one thread at a time.

    Args:
        model: a known name, a path, a folder or a hub id; None is the default model.
        progress: called with (stage, fraction) while loading.
        parts: an engine that is already put together, instead of loading one.
        options: fields of EngineOptions.

    Raises ModelNotFound, UnsupportedModel, ConfigError, MalformedFile.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        progress: StageProgress | None = None,
        parts: EngineParts | None = None,
        **options: Any,
    ) -> None:
        if parts is None:
            from ridgeline.engine.build import build_engine
            from ridgeline.engine.options import EngineOptions

            parts = build_engine(EngineOptions.from_mapping({"model": model, **options}), progress)
        elif model is not None or options:
            raise InvalidParameter("parts", "excludes model and options")
        self.parts = parts
        self.config = parts.config
        self.spec = parts.spec
        self.tokenizer = parts.tokenizer
        self.chat_template = parts.chat_template
        self.model_name = parts.model_name
        self._loop = parts.step_loop()
        self._arrived: dict[str, list[CompletionDelta]] = {}  # deltas by job, not yet taken
        self._ids = itertools.count()
        self._closed = False

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_special_tokens: bool = True,
        progress_bar: bool | None = None,
    ) -> list[RequestOutput]:
        """Outputs in the order of the prompts, which run together.

        A prompt is text or token ids; `params` one for all or one for each. `progress_bar` None
        shows one on a terminal when there are several prompts.
        Raises InvalidParameter or ContextLengthExceeded before anything runs.
        """
        several = _as_prompts(prompts)
        each = _params_for(params, len(several))
        jobs = [self._job(prompt, own, add_special_tokens) for prompt, own in zip(several, each, strict=True)]
        return self._run(jobs, progress_bar)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        progress_bar: bool | None = None,
    ) -> list[RequestOutput]:
        """`generate` from one conversation, or from several. Raises InvalidParameter("messages...")."""
        one = not messages or isinstance(messages[0], Mapping)
        conversations: list[Any] = [messages] if one else list(messages)
        rendered = [
            self.render_chat(entry, add_generation_prompt=add_generation_prompt) for entry in conversations
        ]
        return self.generate(rendered, params, add_special_tokens=False, progress_bar=progress_bar)

    def render_chat(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
        """The prompt that the model's chat template makes; encode it with add_special_tokens=False."""
        from ridgeline.engine.chat import require_chat_template

        template = require_chat_template(self.chat_template, self.model_name)
        return template.render(messages, add_generation_prompt=add_generation_prompt)

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, add_special_tokens: bool = True
    ) -> Generator[CompletionDelta, None, None]:
        """Deltas as they come, of all n completions. Closing the iterator aborts.

        The prompt is checked when the iterator is first advanced.
        """
        job = self._job(prompt, params or SamplingParams(), add_special_tokens)
        self._start([job])
        try:
            while arrived := self._next_deltas(job):
                yield from arrived
        finally:
            self._stop([job])

    def encode(self, prompt: Prompt, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of a prompt, checked against vocabulary and context."""
        return self.parts.intake.encode(prompt, add_special_tokens)

    def close(self) -> None:
        """Free the model. Idempotent."""
        if not self._closed:
            self._closed = True
            self.parts.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _job(self, prompt: Prompt, params: SamplingParams, add_special_tokens: bool) -> Job:
        if self._closed:
            raise EngineClosed("this LLM is closed")
        return self.parts.intake.job(
            f"llm-{next(self._ids)}",
            self.parts.intake.encode(prompt, add_special_tokens),
            params,
            prompt=prompt if isinstance(prompt, str) else None,
        )

    def _run(self, jobs: Sequence[Job], progress_bar: bool | None) -> list[RequestOutput]:
        builders = {job.id: OutputBuilder(job) for job in jobs}
        shown = len(jobs) > 1 and sys.stderr.isatty() if progress_bar is None else progress_bar
        try:
            with _bar(len(jobs), shown) as advance:
                self._start(jobs)
                for job in jobs:
                    while arrived := self._next_deltas(job):
                        for delta in arrived:
                            builders[job.id].add(delta)
                    advance()
        finally:
            self._stop(jobs)
        return [builders[job.id].build() for job in jobs]

    def _start(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._loop.add(job)
            self._arrived[job.id] = []

    def _next_deltas(self, job: Job) -> list[CompletionDelta]:
        """What has arrived for a job, stepping until something has; [] when it is finished and read."""
        arrived = self._arrived[job.id]
        while not arrived and job.id in self._loop.jobs:
            with interrupts.held_back():
                for owner, delta in self._loop.step():
                    self._arrived[owner].append(delta)
                self._loop.take_events()
        self._arrived[job.id] = []
        return arrived

    def _stop(self, jobs: Iterable[Job]) -> None:
        """Abort what is left after an exception or an abandoned iterator; nothing otherwise."""
        for job in jobs:
            self._loop.abort(job.id)
            self._arrived.pop(job.id, None)
        self._loop.take_events()


class _Advance:
    """Counts finished requests on a progress bar, if there is one."""

    def __init__(self, progress: Any = None, task: Any = None) -> None:
        self._progress, self._task = progress, task

    def __call__(self) -> None:
        if self._progress is not None:
            self._progress.advance(self._task)


class _Bar:
    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._total = total
        self._progress = Progress(console=Console(stderr=True), transient=True)

    def __enter__(self) -> _Advance:
        self._progress.start()
        return _Advance(self._progress, self._progress.add_task("generating", total=self._total))

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()


def _bar(total: int, shown: bool) -> AbstractContextManager[_Advance]:
    return _Bar(total) if shown else nullcontext(_Advance())


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several: text, token ids, or a list of either."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, (list, tuple)):
        raise InvalidParameter("prompts", "must be text, token ids, or a list of these")
    if prompts and all(isinstance(entry, int) for entry in prompts):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _params_for(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidParameter("params", f"{len(params)} given for {count} prompts")
    return params
