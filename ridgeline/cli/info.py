"""`ridgeline info`: the facts of a model, read from its header; no weights are loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ridgeline.cli.flags import Json, Model
from ridgeline.cli.printing import download_progress, human_count, print_json, print_table

if TYPE_CHECKING:
    from ridgeline.engine.source import ModelSource
    from ridgeline.facts.gguf import GgufHeader
    from ridgeline.facts.model_spec import LayerSpec, ModelSpec

BYTES_PER_KV_NUMBER = 2
"""bfloat16, the cache's usual type."""


def info(
    model: Model = None,
    sha256: Annotated[
        bool, typer.Option("--sha256", help="Read the whole file and print its checksum.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
    json: Json = False,
) -> None:
    """Print the facts of a model.

    Sizes, heads, KV bytes a token, windows, rotary embedding, quantization, chat template.
    """
    from ridgeline.engine.source import read_header, read_spec, resolve_source

    with download_progress(quiet=json) as progress:
        source = resolve_source(model, progress=progress, offline=offline)
    header = read_header(source)
    facts = model_facts(source, header, read_spec(source, header))
    if sha256:
        facts["sha256"] = _sha256(source)
    if json:
        print_json(facts)
    else:
        print_table(("fact", "value"), [(name, _shown(name, value)) for name, value in facts.items()])


def model_facts(source: ModelSource, header: GgufHeader | None, spec: ModelSpec) -> dict[str, Any]:
    """Everything `info` says, in the order in which it says it; sizes in bytes."""
    from ridgeline.facts.kv_layout import kv_layout

    tensors, num_bytes = _tensors(source, header)
    layout = kv_layout(spec, 16, BYTES_PER_KV_NUMBER)
    return {
        "name": source.served_name,
        "path": str(source.path),
        "architecture": spec.architecture,
        "num_parameters": sum(entry["num_parameters"] for entry in tensors.values()),
        "file_bytes": num_bytes,
        "quantization": spec.stored_quantization,
        "tensors": tensors,
        "num_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_heads": spec.num_heads,
        "num_kv_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "tied_embeddings": spec.tied_embeddings,
        "context_length": spec.context_length,
        "windows": _count_layers(spec.layers, lambda layer: layer.window or "full"),
        "rope": _count_layers(spec.layers, _rope),
        "kv_bytes_per_token": layout.bytes_per_token,
        "kv_bytes_per_token_beyond_windows": layout.bytes_per_token_beyond_windows,
        "kv_bytes_of_full_context": layout.bytes_for(spec.context_length),
        "chat_template": _has_template(source, header),
        "bos_token_id": spec.bos_token_id,
        "eos_token_ids": list(spec.eos_token_ids),
    }


def _tensors(source: ModelSource, header: GgufHeader | None) -> tuple[dict[str, dict[str, int]], int]:
    """Number type -> tensors, parameters and bytes of it; and the bytes of all files."""
    from math import prod

    kinds: dict[str, Counter[str]] = {}
    if header is not None:
        found = [(tensor.type.name, tensor.shape, tensor.num_bytes) for tensor in header.tensors]
        file_bytes = header.file_size
    else:
        from ridgeline.facts.safetensors import read_safetensors_header

        files = sorted(source.path.glob("*.safetensors"))
        headers = [read_safetensors_header(path) for path in files]
        found = [(t.type.name, t.shape, t.num_bytes) for one in headers for t in one.tensors]
        file_bytes = sum(path.stat().st_size for path in files)
    for kind, shape, num_bytes in found:
        kinds.setdefault(kind, Counter()).update(
            num_tensors=1, num_parameters=prod(shape), num_bytes=num_bytes
        )
    return {kind: dict(kinds[kind]) for kind in sorted(kinds)}, file_bytes


def _count_layers(layers: tuple[LayerSpec, ...], key: Any) -> dict[str, int]:
    return dict(Counter(str(key(layer)) for layer in layers))


def _rope(layer: LayerSpec) -> str:
    rope = layer.rope
    scaling = ", ".join(str(part) for part in rope.scaling) if rope.scaling else "no scaling"
    factors = ", frequency factors" if rope.freq_factors else ""
    return f"theta {rope.theta:g}, {rope.rotary_dim} dimensions, {scaling}{factors}"


def _has_template(source: ModelSource, header: GgufHeader | None) -> bool:
    if header is not None:
        return "tokenizer.chat_template" in header.metadata
    if (source.path / "chat_template.jinja").is_file():
        return True
    from ridgeline.facts.json_file import read_json_object

    config = source.path / "tokenizer_config.json"
    return config.is_file() and "chat_template" in read_json_object(config)


def _sha256(source: ModelSource) -> dict[str, str]:
    import hashlib

    files = [source.path] if source.path.is_file() else sorted(source.path.glob("*.safetensors"))
    sums = {}
    for path in files:
        with open(path, "rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _shown(name: str, value: Any) -> str:
    from ridgeline.cost.memory import human_bytes

    if name == "tensors":
        return "\n".join(
            f"{kind}: {entry['num_tensors']} tensors, {human_count(entry['num_parameters'])} parameters, "
            f"{human_bytes(entry['num_bytes'])}"
            for kind, entry in value.items()
        )
    if name in ("windows", "rope"):
        return "\n".join(f"{count} layers: {kind}" for kind, count in value.items())
    if name == "num_parameters":
        return f"{value:,} ({human_count(value)})"
    if name.endswith("_bytes") or "_bytes_" in name:
        return f"{value:,} ({human_bytes(value)})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {entry}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(str(entry) for entry in value)
    return str(value)
