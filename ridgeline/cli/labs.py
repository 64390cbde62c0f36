"""What a lab of the handbook is, where labs are found, and how one is run, checked and kept.

A lab stands beside its chapter: docs/handbook/PART/NAME.md and docs/handbook/PART/NAME_lab.py. The
file has one public name, `LAB`:

    from ridgeline.cli.labs import Exercise, Lab, LabContext, LabResult, Relation

    def run(context: LabContext) -> LabResult: ...
    def plot(result: LabResult, figure: Figure) -> None: ...

    LAB = Lab(title="...", run=run, plot=plot, exercises=(Exercise(...),))

`run` measures (with `context.llm()`, the real engine on the default model) or computes, and says
which relations it expects: never absolute times. A lab whose relation does not hold has failed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ridgeline import __version__
from ridgeline.cli.flags import parse_bytes
from ridgeline.engine.errors import RidgelineError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ridgeline.engine.llm import LLM
    from ridgeline.engine.sampling_params import SamplingParams

LAB_KV_BYTES = 256 << 20
"""The KV cache of a lab's engine: some 11,000 tokens of the default model."""

_TEXT = (
    "A ridge line is where two slopes meet. Below it, on one side, a machine waits for its memory; on "
    "the other it is busy with arithmetic. Every program that runs on that machine stands somewhere on "
    "the slopes, and whoever wants to make it faster should first find out where. A language model "
    "walks along the ridge: it reads a question with all its arithmetic at once, then writes the answer "
    "one word after another, each time fetching everything it knows. Serving many people at the same "
    "time moves it towards the ridge again, because what was fetched once is used for all of them. "
)

_PREFIXES = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "b": 1e9}


class LabError(RidgelineError):
    """No such lab, a missing extra, or an answer that cannot be read."""


@dataclass(frozen=True)
class Relation:
    """What the lab expects to see, and whether it did. `detail` has the figures."""

    text: str
    holds: bool
    detail: str = ""


@dataclass(frozen=True)
class LabResult:
    """A table, the relations, and (for the plot, kept in the JSON too) whatever else `data` holds."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    relations: tuple[Relation, ...]
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LabContext:
    """How the lab was called. `quick` asks for the smallest run that still shows the relations."""

    quick: bool = False
    model: str | None = None

    def llm(self, **options: Any) -> LLM:
        """The real engine, offline and synchronous, on the lab's model; close it or use `with`.

        Its cache is small (`LAB_KV_BYTES`) unless `options` say otherwise.
        """
        from ridgeline.engine.llm import LLM

        if "num_blocks" not in options:
            options.setdefault("kv_memory_bytes", LAB_KV_BYTES)
        return LLM(self.model, **options)


@dataclass(frozen=True)
class Exercise:
    """A question whose answer is a number (within `tolerance`, a share) or one of a few words.

    `wrong` is an answer somebody might give and that is refused (the tests hold it to that);
    `hint` is shown with a refusal.
    """

    question: str
    answer: float | tuple[str, ...]
    wrong: str
    hint: str
    tolerance: float = 0.02

    @property
    def right(self) -> str:
        """An answer that is accepted."""
        return repr(self.answer) if isinstance(self.answer, int | float) else self.answer[0]

    def accepts(self, answer: str) -> bool:
        """Raises LabError when a number was asked for and `answer` is none."""
        if isinstance(self.answer, tuple):
            return answer.strip().lower() in {word.lower() for word in self.answer}
        return abs(read_number(answer) - self.answer) <= self.tolerance * abs(self.answer)


@dataclass(frozen=True)
class Lab:
    """One lab: `run` gives the result, `plot` draws it on an empty figure."""

    title: str
    run: Callable[[LabContext], LabResult]
    plot: Callable[[LabResult, Figure], None]
    exercises: tuple[Exercise, ...]


def token_times(
    llm: LLM, prompt: str | Sequence[int], params: SamplingParams
) -> tuple[list[float], list[int]]:
    """Generate one completion: seconds from its start to each of its tokens, and the tokens."""
    times: list[float] = []
    token_ids: list[int] = []
    start = time.perf_counter()
    for delta in llm.stream(prompt, params):
        times += [time.perf_counter() - start] * len(delta.token_ids)
        token_ids += delta.token_ids
    return times, token_ids


def text_tokens(llm: LLM, num_tokens: int, offset: int = 0) -> list[int]:
    """`num_tokens` ids of plain English; texts of different `offset` share no prefix."""
    token_ids = llm.tokenizer.encode(_TEXT, False)
    shifted = token_ids[offset % len(token_ids) :] + token_ids[: offset % len(token_ids)]
    return (shifted * (num_tokens // len(shifted) + 1))[:num_tokens]


def decode_step_s(llm: LLM, batch: int, num_steps: int, num_prompt_tokens: int) -> float:
    """Median seconds of a decode step of `batch` requests with prompts of their own on the real engine."""
    from statistics import median

    from ridgeline.core.event import StepCompleted
    from ridgeline.engine.sampling_params import SamplingParams

    params = SamplingParams(max_tokens=num_steps + 1, temperature=0, ignore_eos=True)
    engine = llm.parts.engine
    for index in range(batch):
        prompt = tuple(text_tokens(llm, num_prompt_tokens, offset=3 * index))
        for request in llm.parts.intake.job(f"lab-{batch}-{index}", prompt, params).requests:
            engine.add(request)
    seconds = []
    while engine.has_work():
        for event in engine.step():
            if isinstance(event, StepCompleted) and event.num_rows == batch and not event.num_prefill_tokens:
                seconds.append(event.seconds)
    return median(seconds)


def read_number(text: str) -> float:
    """`"131072"`, `"131,072"`, `"128 KiB"`, `"16.1 GB"`, `"25%"` or `"7.5B"` as a number."""
    words = text.strip().replace(",", "").replace("_", "")
    match = re.fullmatch(r"([-+]?\d*\.?\d+(?:e[-+]?\d+)?)\s*([a-z%/ ]*)", words, re.IGNORECASE)
    if match is None:
        raise LabError(f"answer: {text!r} is not a number")
    value, unit = float(match[1]), match[2].strip().lower()
    if unit == "%":
        return value / 100
    if re.fullmatch(r"[kmgt]i?b", unit):
        return value * parse_bytes(f"1{unit}")
    return value * _PREFIXES.get(unit, 1.0)


def handbook_root() -> Path:
    """The folder of the parts: packaged in a wheel, or docs/handbook of the checkout."""
    import ridgeline

    package = Path(ridgeline.__file__).parent
    for root in (package / "handbook", package.parent / "docs" / "handbook"):
        if root.is_dir():
            return root
    raise LabError("handbook: not part of this installation")


def lab_files() -> dict[str, Path]:
    """Name -> file of every lab, in the order of parts and names."""
    files = sorted(handbook_root().glob("*/*_lab.py"))
    return {path.stem.removesuffix("_lab"): path for path in files}


def load_lab(name: str) -> Lab:
    """The lab called `name`, or LabError that lists those that exist."""
    files = lab_files()
    if name not in files:
        raise LabError(f"lab: no lab {name!r}; there are {', '.join(files) or 'none'}")
    spec = importlib.util.spec_from_file_location(f"ridgeline_lab_{name}", files[name])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    lab = module.LAB
    assert isinstance(lab, Lab), f"{files[name]} must define LAB"
    return lab


def record(name: str, lab: Lab, result: LabResult, context: LabContext) -> dict[str, Any]:
    """The result as JSON, with the machine and the date."""
    return {
        "lab": name,
        "title": lab.title,
        "date": datetime.now(UTC).date().isoformat(),
        "version": __version__,
        "quick": context.quick,
        "machine": machine(),
        **asdict(result),
    }


def keep(directory: Path, name: str, lab: Lab, result: LabResult, context: LabContext) -> list[Path]:
    """Write NAME.json and NAME.png into `directory`; the plot needs the extra `lab`."""
    directory.mkdir(parents=True, exist_ok=True)
    results = directory / f"{name}.json"
    results.write_text(json.dumps(record(name, lab, result, context), indent=2, ensure_ascii=False) + "\n")
    return [results, draw(directory / f"{name}.png", lab, result)]


def draw(path: Path, lab: Lab, result: LabResult) -> Path:
    """Draw the lab's plot into a PNG file."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise LabError(
            "plot: matplotlib is missing; pip install 'ridgeline[lab]', or add --no-plot"
        ) from None
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    lab.plot(result, figure)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    return {
        "cpu": _cpu_name(),
        "num_cores": os.cpu_count(),
        "os": platform.system(),
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
