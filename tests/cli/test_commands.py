"""The verbs: what they print, and that every mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from ridgeline.cli.flags import EngineFlags, SamplingFlags, parse_bytes
from ridgeline.cli.main import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, EXIT_MISTAKE, run
from ridgeline.cli.serve import ServerFlags
from ridgeline.engine.options import EngineOptions
from ridgeline.engine.sampling_params import SamplingParams
from ridgeline.engine.source import ModelSource
from ridgeline.serve.options import ServerOptions

RIDGELINE = [sys.executable, "-m", "ridgeline.cli.main"]
SMALL = ["--kv-memory", "64MiB"]
VERBS = ["serve", "generate", "chat", "explain", "info", "pull", "roofline", "lab", "version"]

Capture = pytest.CaptureFixture[str]


def names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def answer(capsys: Capture, *arguments: str) -> dict:
    """The JSON of a command line that succeeds and says nothing else."""
    assert run([*arguments, "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return json.loads(said.out)


def test_every_option_has_a_flag() -> None:
    assert (names(EngineFlags) - {"engine_seed"}) | {"seed", "model"} == names(EngineOptions)
    assert names(SamplingFlags) == names(SamplingParams)
    assert names(ServerFlags) | {"served_model_names"} == names(ServerOptions)


@pytest.mark.parametrize("verb", VERBS)
def test_help(capsys: Capture, verb: str) -> None:
    assert run([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: ridgeline {verb}")
    assert "--json" in text


def test_version(capsys: Capture) -> None:
    assert answer(capsys, "version")["version"]


def test_no_arguments_print_the_help(capsys: Capture) -> None:
    assert run([]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("Usage:") and "\nCommands:\n" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--top-p", "3"], "top_p: must be in (0.0, 1.0], got 3.0"),
        (["generate", "x", "--temperature", "nan"], "temperature: must be in [0.0, 100.0], got nan"),
        (["generate", "x", "--n", "1000"], "n: must be between 1 and 128, got 1000"),
        (["generate", "x", "--logit-bias", "a=3"], "logit_bias: write TOKEN_ID=BIAS"),
        (["generate", "x", "--system", "y"], "system: a system message needs --chat"),
        (["generate", "x", "--backend", "gpu"], "backend: must be one of auto, native, reference, got 'gpu'"),
        (["chat", "--n", "2"], "n: a conversation has one answer a turn, got 2"),
        (["explain", "--max-num-seqs", "0"], "max_num_seqs: must be between 1 and 8192, got 0"),
        (
            ["explain", "--max-model-len", "100000"],
            "max_model_len: 100000 is over the model's context of 8192",
        ),
        (["explain", "--num-blocks", "9", "--kv-memory", "1G"], "num_blocks: and kv_memory_bytes both size"),
        (["explain", "--kv-memory", "3x"], "'3x' is not a size"),
        (["serve", "--port", "70000"], "port: must be between 0 and 65535, got 70000"),
        (["serve", "--host", "no.such.host.invalid"], "host: 'no.such.host.invalid' cannot be resolved"),
        (["serve", "--api-key", "a b"], "api_keys: a key is printable ASCII"),
        (["info", "nothing/here.gguf"], "'nothing/here.gguf' is no path here"),
        (["lab", "nothing"], "lab: no lab 'nothing'"),
        (["lab", "kv_cache", "--check", "many"], "answer: 'many' is not a number"),
        (["lab", "kv_cache", "--check", "1", "--exercise", "99"], "exercise: this lab has 3, got 99"),
        (["explian"], "No such command 'explian'"),
        (["explain", "--wings"], "No such option: --wings"),
        (["generate"], "Missing argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(capsys: Capture, arguments: list[str], message: str) -> None:
    assert run(arguments) == EXIT_MISTAKE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_a_malformed_file_is_one_line(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "lies.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (1 << 60).to_bytes(8, "little") * 2)
    assert run(["info", str(path)]) == EXIT_MISTAKE
    error = capsys.readouterr().err
    assert "at byte" in error
    assert error.count("\n") == 1


def test_info(capsys: Capture, default_model: ModelSource) -> None:
    facts = answer(capsys, "info")
    assert facts["num_parameters"] == 134_515_008
    assert (facts["num_layers"], facts["num_heads"], facts["num_kv_heads"], facts["head_dim"]) == (
        30,
        9,
        3,
        64,
    )
    assert facts["kv_bytes_per_token"] == 2 * 30 * 3 * 64 * 2
    assert facts["chat_template"] is True
    assert sum(kind["num_parameters"] for kind in facts["tensors"].values()) == facts["num_parameters"]
    assert run(["info"]) == 0
    assert "134,515,008 (134.5M)" in capsys.readouterr().out


def test_pull(capsys: Capture, default_model: ModelSource) -> None:
    pulled = answer(capsys, "pull")
    assert Path(pulled["path"]) == default_model.path
    assert pulled["num_bytes"] == 98_362_432


def test_pull_offline_and_missing(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path))
    assert run(["pull", "--offline"]) == EXIT_MISTAKE
    error = capsys.readouterr().err
    assert "offline" in error
    assert "ridgeline pull" in error


def test_explain(capsys: Capture, default_model: ModelSource) -> None:
    explained = answer(capsys, "explain", "--max-num-seqs", "7", *SMALL)
    assert explained["config"]["max_num_seqs"] == 7
    decisions = {decision["field"]: decision for decision in explained["decisions"]}
    assert set(decisions) == set(explained["config"])
    assert all(decision["reason"] for decision in decisions.values())
    assert decisions["max_num_seqs"]["asked"] is True
    entries = explained["memory"]["entries"]
    assert explained["memory"]["total_bytes"] == sum(entry["bytes"] for entry in entries)
    assert {"weights", "kv_cache", "activations"} <= {entry["name"] for entry in entries}
    assert run(["explain", *SMALL]) == 0
    text = capsys.readouterr().out
    assert "Memory ledger" in text
    assert "max_num_seqs" in text


def test_generate(capsys: Capture, default_model: ModelSource) -> None:
    prompt = "The capital of France is"
    said = answer(capsys, "generate", prompt, "-t", "0", "-m", "4", "--logprobs", "2", *SMALL)
    assert "Paris" in said["text"]
    assert len(said["token_ids"]) == 4
    assert said["usage"] == {"num_prompt_tokens": 5, "num_generated_tokens": 4, "num_cached_tokens": 0}
    assert set(said["timings"]) == {"load_s", "ttft_s", "total_s", "tokens_per_s"}
    assert len(said["completions"][0]["logprobs"]) == 4
    assert len(said["completions"][0]["logprobs"][0]["top"]) == 2
    assert run(["generate", prompt, "-t", "0", "-m", "4", *SMALL]) == 0
    assert capsys.readouterr().out == said["text"] + "\n"


def test_generate_several_with_prompt_logprobs(capsys: Capture, default_model: ModelSource) -> None:
    said = answer(
        capsys, "generate", "One, two", "--n", "2", "-m", "3", "--seed", "1", "--prompt-logprobs", "1", *SMALL
    )
    assert [completion["index"] for completion in said["completions"]] == [0, 1]
    assert said["usage"]["num_generated_tokens"] == 6
    assert said["prompt_logprobs"][0] is None
    assert len(said["prompt_logprobs"]) == said["usage"]["num_prompt_tokens"]


def test_generate_reads_stdin(default_model: ModelSource) -> None:
    command = [*RIDGELINE, "generate", "-", "--chat", "-t", "0", "-m", "2", "--json", *SMALL]
    done = subprocess.run(command, input="Hello", capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["prompt"] == "Hello"


def test_a_prompt_that_is_too_long(capsys: Capture, default_model: ModelSource) -> None:
    assert run(["generate", "x", "-m", "64", "--max-model-len", "16", *SMALL]) == EXIT_MISTAKE
    assert "context is 16 tokens" in capsys.readouterr().err


def test_chat_keeps_history_and_its_prefix(default_model: ModelSource) -> None:
    command = [*RIDGELINE, "chat", "--json", "-t", "0", "-m", "8", *SMALL]
    lines = (
        "Name three colours, please.\nAnd two more?\n/reset\nName three colours, please.\n/quit\nnever read\n"
    )
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    first, second, third = (json.loads(line) for line in done.stdout.splitlines())
    assert first["num_cached_tokens"] == 0
    assert second["num_prompt_tokens"] > first["num_prompt_tokens"]
    assert second["num_cached_tokens"] > 0
    assert third["text"] == first["text"]


def test_a_port_in_use_is_refused_before_loading(capsys: Capture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["serve", "--port", str(port)]) == EXIT_MISTAKE
    assert f"port: cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_serve_answers_and_ends_quietly(default_model: ModelSource) -> None:
    environment = {**os.environ, "RIDGELINE_API_KEY": "secret"}
    command = [*RIDGELINE, "serve", "--port", "0", "--served-model-name", "tiny", *SMALL]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stderr is not None
        said = ""
        while "curl" not in said:
            line = server.stderr.readline()
            assert line, f"ended early: {said}"
            said += line
        assert "Authorization: Bearer KEY" in said
        address = said.split("ready at ")[1].split()[0]
        request = urllib.request.Request(f"{address}/v1/models", headers={"Authorization": "Bearer secret"})
        with urllib.request.urlopen(request, timeout=30) as response:
            assert json.load(response)["data"][0]["id"] == "tiny"
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
        assert "Traceback" not in server.stderr.read()
    finally:
        server.kill()
        server.wait()


def test_interrupt_is_quiet(default_model: ModelSource) -> None:
    command = [
        *RIDGELINE,
        "generate",
        "Count:",
        "-m",
        "5000",
        "--ignore-eos",
        *SMALL,
        "--max-model-len",
        "2048",
    ]
    command[command.index("5000")] = "2000"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED
    assert b"Traceback" not in error


def test_an_interrupt_cuts_an_answer_short_and_the_chat_goes_on(default_model: ModelSource) -> None:
    pty = pytest.importorskip("pty")
    mine, its = pty.openpty()
    command = [*RIDGELINE, "chat", "-m", "1500", "--ignore-eos", *SMALL, "--max-model-len", "2048"]
    process = subprocess.Popen(command, stdin=its, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.close(its)
    try:
        assert process.stdout is not None
        os.write(mine, b"Count to a million.\n")
        while process.stdout.read(1) in b"> ":  # the prompt, then the answer
            pass
        process.send_signal(signal.SIGINT)
        os.write(mine, b"/quit\n")
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0
        assert b"Traceback" not in error
    finally:
        process.kill()
        process.wait()
        os.close(mine)


def test_a_broken_pipe_is_quiet() -> None:
    process = subprocess.Popen(
        [*RIDGELINE, "serve", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    error = process.stderr.read()
    assert process.wait(timeout=30) == EXIT_BROKEN_PIPE
    assert error == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_no_bug() -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        command = [*RIDGELINE, "version", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=buffered)
    assert done.returncode == 2
    assert done.stderr == b"error: output: no space left on the device\n"


def test_a_bug_is_one_line_with_a_hint(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise ZeroDivisionError("by design")

    monkeypatch.setattr("platform.python_version", broken)
    assert run(["version"]) == 1
    error = capsys.readouterr().err
    assert error == "error: ZeroDivisionError: by design (this is a bug; RIDGELINE_DEBUG=1 shows where)\n"
    monkeypatch.setenv("RIDGELINE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run(["version"])


@pytest.mark.parametrize(
    ("text", "count"),
    [("10", 10), ("2GiB", 2 << 30), ("512MB", 512_000_000), ("1.5k", 1_500), ("64 MiB", 64 << 20)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


def test_lab_checks_answers(capsys: Capture) -> None:
    assert run(["lab", "kv_cache", "--check", "16"]) == 0
    assert capsys.readouterr().out == "right\n"
    assert run(["lab", "kv_cache", "--check", "8"]) == 1
    assert capsys.readouterr().out.startswith("not that.")


def test_lab_list(capsys: Capture) -> None:
    assert run(["lab", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"part": "attention", "name": "kv_cache"}.items() <= next(
        entry for entry in listed if entry["name"] == "kv_cache"
    ).items()


def test_lab_runs_and_writes(capsys: Capture, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    start = time.monotonic()
    said = answer(capsys, "lab", "where_every_byte_goes", "--quick", "--out", str(tmp_path))
    assert time.monotonic() - start < 60
    assert all(relation["holds"] for relation in said["relations"])
    assert {Path(path).name for path in said["files"]} == {
        "where_every_byte_goes.json",
        "where_every_byte_goes.png",
    }
