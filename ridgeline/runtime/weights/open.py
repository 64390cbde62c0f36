"""Open a model's tensors: a GGUF file, or a folder of safetensors, over memory maps."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ridgeline.engine.errors import UnsupportedModel
from ridgeline.engine.source import ModelSource, read_header
from ridgeline.facts.errors import MalformedFile, UnsupportedFeature
from ridgeline.facts.gguf import GgufHeader, GgufTensor
from ridgeline.facts.gguf_spec import model_spec_from_gguf
from ridgeline.facts.json_file import read_json_object
from ridgeline.facts.model_spec import ModelSpec
from ridgeline.facts.safetensors import read_safetensors_header
from ridgeline.runtime.weights.gguf_names import FACTS_NOT_WEIGHTS, canonical_name, rotate_half_rows
from ridgeline.runtime.weights.stream import TensorStream
from ridgeline.runtime.weights.tensor import TensorSource

MAX_INDEX_BYTES = 64 << 20
_DERIVED = re.compile(r".*\.rotary_emb\.inv_freq")
"""Buffers that old checkpoints store though they follow from the configuration."""
_INTERLEAVED = re.compile(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)")


def open_tensors(
    source: ModelSource, spec: ModelSpec | None = None, header: GgufHeader | None = None
) -> TensorStream:
    """The tensors of `source` under Hugging Face names. `spec` and `header` save reading them again.

    Raises MalformedFile, UnsupportedModel.
    """
    try:
        if source.kind == "gguf":
            header = header or read_header(source)
            assert header is not None
            spec = spec or model_spec_from_gguf(header, source.name)
            return TensorStream(str(source.path), _gguf_tensors(header, spec))
        return TensorStream(str(source.path), _folder_tensors(source.path))
    except UnsupportedFeature as error:
        raise UnsupportedModel(f"{source.path}: {error}") from error


def _gguf_tensors(header: GgufHeader, spec: ModelSpec) -> Iterator[TensorSource]:
    file = np.frombuffer(header.buffer, dtype=np.uint8)
    orders: dict[str, npt.NDArray[np.int64]] = {}
    if spec.architecture == "llama":
        orders["q"] = rotate_half_rows(spec.num_heads, spec.head_dim)
        orders["k"] = rotate_half_rows(spec.num_kv_heads, spec.head_dim)
    for tensor in header.tensors:
        if tensor.name in FACTS_NOT_WEIGHTS:
            continue
        name = canonical_name(tensor.name, spec.architecture)
        stored = file[tensor.offset : tensor.offset + tensor.num_bytes]
        order = _row_order(header, tensor, orders)
        if order is not None and len(tensor.shape) == 1:
            stored, order = stored.reshape(len(order), -1)[order].reshape(-1), None
        yield TensorSource(name, tensor.shape, tensor.type, stored, order)


def _row_order(
    header: GgufHeader, tensor: GgufTensor, orders: dict[str, npt.NDArray[np.int64]]
) -> npt.NDArray[np.int64] | None:
    match = _INTERLEAVED.fullmatch(tensor.name)
    if not match or not orders:
        return None
    order = orders[match[1]]
    if tensor.shape[0] != len(order) or (len(tensor.shape) == 1 and tensor.type.is_quantized):
        message = f"{tensor.shape[0]} rows of {tensor.type.name}, expected {len(order)} (heads x head size)"
        raise MalformedFile(header.path, tensor.name, None, message)
    return order


def _folder_tensors(folder: Path) -> Iterator[TensorSource]:
    for path in _shards(folder):
        header = read_safetensors_header(path)
        with open(path, "rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(buffer) < header.file_size:
            raise MalformedFile(path, "file size", None, "the file shrank while it was read")
        data = np.frombuffer(buffer, dtype=np.uint8)
        for tensor in header.tensors:
            if not _DERIVED.fullmatch(tensor.name):
                stored = data[tensor.offset : tensor.offset + tensor.num_bytes]
                yield TensorSource(tensor.name, tensor.shape, tensor.type, stored)


def _shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those of its index, else the one file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _indexed(folder, index)
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise MalformedFile(folder, "model.safetensors", None, f"{len(files)} safetensors files and no index")
    return files


def _indexed(folder: Path, index: Path) -> list[Path]:
    """Files named by the index, each inside the folder and holding the tensors that the index says."""
    weight_map = read_json_object(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedFile(index, "weight_map", None, "expected an object of tensor names and file names")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            message = f"{str(name)[:80]!r} (of {tensor[:80]}) is not the plain name of a .safetensors file"
            raise MalformedFile(index, "weight_map", None, message)
    paths = [folder / name for name in dict.fromkeys(weight_map.values())]
    for path in paths:
        if not path.is_file():
            raise MalformedFile(index, "weight_map", None, f"{path.name} is not in the folder")
        held = {tensor.name for tensor in read_safetensors_header(path).tensors}
        missing = next((t for t, name in weight_map.items() if name == path.name and t not in held), None)
        if missing is not None:
            raise MalformedFile(index, "weight_map", None, f"{path.name} does not hold {missing}")
    return paths
