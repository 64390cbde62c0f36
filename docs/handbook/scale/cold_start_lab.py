"""Lab: from `python` to the first token, stage by stage, in fresh processes.

The lab starts this very file as a process of its own; there it loads the default model through the same
functions as `ridgeline serve` and prints when each stage was done.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from ridgeline.cli.labs import Exercise, Lab, LabContext, LabError, LabResult, Relation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGES = {
    "process": "the interpreter, the standard library, this file",
    "import": "ridgeline's code and numpy",
    "decide": "find the model, read its header, probe the machine, resolve the options",
    "tokenizer": "vocabulary and merges",
    "weights": "read and pack the matrices, allocate the cache",
    "first token": "assemble the engine, prefill a short prompt, sample",
}
WARM = "next request"


def start_and_report(started_s: float, model: str | None) -> None:
    """In the fresh process: load, answer twice, print seconds of each stage and bytes of the weights."""
    marks = [("process", time.time())]

    def done(stage: str) -> None:
        marks.append((stage, time.time()))

    from ridgeline import LLM, SamplingParams
    from ridgeline.cli.labs import LAB_KV_BYTES
    from ridgeline.engine.build import assemble, load_executor, prepare
    from ridgeline.engine.options import EngineOptions
    from ridgeline.engine.tokenizing import load_tokenizer

    done("import")
    prepared = prepare(EngineOptions(model=model, kv_memory_bytes=LAB_KV_BYTES, enable_prefix_caching=False))
    done("decide")
    metadata = None if prepared.header is None else dict(prepared.header.metadata)
    tokenizer = load_tokenizer(prepared.source, metadata)
    done("tokenizer")
    executor = load_executor(prepared)
    done("weights")
    parts = assemble(prepared.config, prepared.spec, executor, tokenizer, prepared=prepared)
    with LLM(parts=parts) as llm:
        params = SamplingParams(max_tokens=1, temperature=0)
        llm.generate("The capital of France is", params)
        done("first token")
        llm.generate("The capital of Italy is", params)
        done(WARM)
    starts = [started_s, *(time_s for _, time_s in marks)]
    seconds = {stage: end - start for (stage, end), start in zip(marks, starts, strict=False)}
    print(json.dumps({"seconds": seconds, "backend": prepared.config.backend}))


def fresh_process(model: str | None) -> dict[str, Any]:
    """Start one and read its report. Raises LabError with what it said when it failed."""
    command = [sys.executable, __file__, repr(time.time()), *([model] if model else [])]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if process.returncode:
        raise LabError(f"cold start failed: {process.stderr.strip().splitlines()[-1:]}")
    report: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return report


def run(context: LabContext) -> LabResult:
    """Several cold starts with the file cache warm; medians by stage."""
    with context.llm() as llm:  # downloads the model if need be, and warms the file cache
        config = llm.config
    reports = [fresh_process(context.model) for _ in range(2 if context.quick else 5)]
    runs = [report["seconds"] for report in reports]
    seconds = {stage: median(run[stage] for run in runs) for stage in STAGES}
    warm_s = median(run[WARM] for run in runs)
    total = sum(seconds.values())
    return LabResult(
        columns=("stage", "ms", "share %", "what happens"),
        rows=tuple((stage, 1e3 * s, 100 * s / total, STAGES[stage]) for stage, s in seconds.items()),
        relations=relations(seconds, warm_s),
        data={
            "seconds": seconds,
            "total_s": total,
            "next_request_s": warm_s,
            "weights": config.weights,
            "backend": reports[0]["backend"],
        },
    )


def relations(seconds: dict[str, float], warm_s: float) -> tuple[Relation, ...]:
    """What the chapter claims about a start with everything in the file cache."""
    total = sum(seconds.values())
    before = total - seconds["first token"]
    code = seconds["process"] + seconds["import"] + seconds["decide"]
    requests = 100 * total / warm_s
    return (
        Relation(
            "the first token of a fresh process takes more than 3 times one of a warm process",
            total > 3 * warm_s,
            f"{total:.2f} s, and {warm_s:.3f} s for the next request",
        ),
        Relation(
            "most of the wait is over before the model computes anything",
            before > total / 2,
            f"{100 * before / total:.0f}%",
        ),
        Relation(
            "the weights take longer than any other stage",
            seconds["weights"] == max(seconds.values()),
            f"{100 * seconds['weights'] / total:.0f}%; process, import, decide {100 * code / total:.0f}%",
        ),
        Relation(
            "a start is paid off only by requests",
            requests > 100,
            f"after {requests:,.0f} requests of one token one after the other it is 1% of the time",
        ),
    )


def plot(result: LabResult, figure: Figure) -> None:
    """One bar a stage, each beginning where the one before ended."""
    axes = figure.subplots()
    seconds = result.data["seconds"]
    start = 0.0
    for stage, value in seconds.items():
        bar = axes.barh(
            stage, 1e3 * value, left=1e3 * start, color="tab:gray" if stage != "weights" else "tab:orange"
        )
        axes.bar_label(bar, [f"{1e3 * value:,.0f} ms"], padding=3, fontsize=8)
        start += value
    axes.invert_yaxis()
    axes.set(
        xlabel="ms since the process was started",
        xlim=(0, 1.12e3 * start),
        title="process start to first token",
    )


LAB = Lab(
    title="Where does the time go between starting a process and its first token?",
    run=run,
    plot=plot,
    exercises=(
        Exercise(
            question=(
                "Llama 3.1 70B in bfloat16 is 141 GB. How many seconds does reading it take from a disk of "
                "5 GB/s, into one machine?"
            ),
            answer=141 / 5,
            wrong="141",
            hint="Bytes over bytes a second.",
        ),
        Exercise(
            question=(
                "A replica needs 90 s to start; requests arrive at 10 a second above what the others can "
                "take. How many wait when it is ready?"
            ),
            answer=900,
            wrong="9",
            hint="Rate x time.",
        ),
        Exercise(
            question="Which of the stages does quantizing the file to half its bytes shorten?",
            answer=("weights", "the weights", "reading the weights"),
            wrong="import",
            hint="Which one is proportional to bytes?",
        ),
    ),
)

if __name__ == "__main__":
    start_and_report(float(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
