"""Cold start: from the start of a process to its first token, and where the time goes.

    python benchmarks/cold_start.py [--runs 7] [--model MODEL] [--json]

Two figures, each the median of several fresh processes with the model file in the file cache:

- *command*: `ridgeline generate PROMPT --max-tokens 1` from spawn to the first byte of its answer;
- *stages*: the same path in a process that looks at the clock between the stages. Reading the tokenizer runs
  beside loading the weights, so the stages add up to the total without it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

from ridgeline import __version__
from ridgeline.cli.labs import machine

PROMPT = "The capital of France is"
TARGET_S = 1.5
STAGES = ("interpreter", "imports", "prepare", "weights", "assemble", "first token")
BESIDE = "tokenizer (beside weights)"

CHILD = """
import sys, time
marks = [("interpreter", time.monotonic())]
def mark(name):
    marks.append((name, time.monotonic()))

from ridgeline import SamplingParams
from ridgeline.engine import build, llm
from ridgeline.engine.options import EngineOptions
mark("imports")

reading = [0.0]
def timed(work):
    def call(*arguments):
        start = time.monotonic()
        try:
            return work(*arguments)
        finally:
            reading[0] = time.monotonic() - start
    return call
build._load_text_side = timed(build._load_text_side)

def marked(work, name):
    def call(*arguments):
        result = work(*arguments)
        mark(name)
        return result
    return call
build.prepare = marked(build.prepare, "prepare")
build.load_executor = marked(build.load_executor, "weights")
model = sys.argv[1] or None
with llm.LLM(parts=build.build_engine(EngineOptions(model=model))) as engine:
    mark("assemble")
    next(iter(engine.stream(sys.argv[2], SamplingParams(max_tokens=1, temperature=0))))
    mark("first token")
    import json
    print(json.dumps({"marks": marks, "reading": reading[0], "backend": engine.config.backend}))
"""


def command_s(model: str | None) -> float:
    """Seconds from spawning `ridgeline generate` to the first byte of the answer."""
    chosen = ["--model", model] if model else []
    command = [sys.executable, "-m", "ridgeline.cli.main", "generate", PROMPT, "-t", "0", "-m", "1", *chosen]
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.read(1):
            raise SystemExit("the command printed nothing")
        seconds = time.monotonic() - start
        process.stdout.read()
    return seconds


def stages_s(model: str | None) -> tuple[dict[str, float], str]:
    """Seconds of each stage of one process, and the backend that it chose."""
    start = time.monotonic()  # one clock for all processes of the machine
    arguments = [sys.executable, "-c", CHILD, model or "", PROMPT]
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    said = json.loads(done.stdout)
    stages, before = {}, start
    for name, moment in said["marks"]:
        stages[name] = moment - before
        before = moment
    return {**stages, BESIDE: said["reading"], "total": before - start}, said["backend"]


def measure(model: str | None, runs: int) -> dict[str, Any]:
    """Medians over `runs` processes of each kind; a first one of each warms the file cache."""
    command_s(model), stages_s(model)
    commands = [command_s(model) for _ in range(runs)]
    samples = [stages_s(model) for _ in range(runs)]
    names = (*STAGES, BESIDE, "total")
    return {
        "command_s": statistics.median(commands),
        "command_spread_s": [min(commands), max(commands)],
        "stages_s": {name: statistics.median(stages[name] for stages, _ in samples) for name in names},
        "backend": samples[0][1],
        "runs": runs,
        "target_s": TARGET_S,
        "version": __version__,
        "python": platform.python_version(),
        "machine": machine(),
    }


def main() -> None:
    """Measure and print; exits with 1 when the target is missed."""
    parser = argparse.ArgumentParser(description="Process start to first token.")
    parser.add_argument("--model", help="default: the default model")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.model, max(1, options.runs))
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        low, high = result["command_spread_s"]
        print(f"{result['machine']['cpu']}, {result['backend']} backend, median of {result['runs']}\n")
        print(
            f"command          {result['command_s']:.3f} s  ({low:.3f} to {high:.3f}; target {TARGET_S} s)\n"
        )
        for name, seconds in result["stages_s"].items():
            print(f"{name:<28} {1e3 * seconds:7.0f} ms")
    sys.exit(result["command_s"] > TARGET_S)


if __name__ == "__main__":
    main()
