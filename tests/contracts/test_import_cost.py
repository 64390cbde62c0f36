"""Contract 7: `import ridgeline` takes under 50 ms, `ridgeline --help` under 300 ms of CPU; no torch.

CPU time (user + system) of a child process, the least of several runs: a busy machine does not matter.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

IMPORT_LIMIT_S = 0.050
HELP_LIMIT_S = 0.300
NUM_RUNS = 5

VERBS = ("serve", "generate", "chat", "explain", "info", "pull", "lab", "version")

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import ridgeline
for module in pkgutil.walk_packages(ridgeline.__path__, "ridgeline."):
    name = module.name
    if name.startswith(("ridgeline.runtime.torch", "ridgeline.handbook")) or name.endswith("__main__"):
        continue
    try:
        importlib.import_module(name)
    except ImportError as error:  # the compiled module may be missing: the reference backend serves then
        assert "_native" in str(error), f"{name}: {error}"
    assert "torch" not in sys.modules, f"{name} loads torch"
"""


def cpu_seconds(*arguments: str) -> float:
    """User plus system time of one `python ARGUMENTS`, which must succeed."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def least(*arguments: str) -> float:
    return min(cpu_seconds(*arguments) for _ in range(NUM_RUNS))


def test_importing_ridgeline_is_cheap() -> None:
    bare = least("-c", "pass")
    assert least("-c", "import ridgeline") - bare < IMPORT_LIMIT_S


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_is_cheap(arguments: list[str]) -> None:
    assert least("-m", "ridgeline.cli.main", *arguments) < HELP_LIMIT_S


def test_torch_is_never_loaded() -> None:
    subprocess.run([sys.executable, "-c", IMPORT_EVERYTHING], check=True)


@pytest.mark.parametrize("module", ["numpy", "rich", "fastapi", "tokenizers", "jinja2", "huggingface_hub"])
def test_help_does_not_load_the_heavy_modules(module: str) -> None:
    program = (
        "import sys; from ridgeline.cli.main import run; "
        f"code = run(['--help']); assert code == 0, code; assert {module!r} not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
