"""The header of a safetensors file, held against the file's size before anything is believed.

    header length u64 (little-endian) | header JSON | data

Format: the safetensors specification. Only F32, F16 and BF16 tensors are read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from ridgeline.facts.errors import MalformedFile, UnsupportedFeature
from ridgeline.facts.ggml import GgmlType
from ridgeline.facts.json_file import parse_json_object

MAX_HEADER_BYTES = 100_000_000
MAX_DIMS = 8
MAX_DIM = 1 << 40

DTYPES = {"F32": GgmlType.F32, "F16": GgmlType.F16, "BF16": GgmlType.BF16}
_OTHER_DTYPES = {
    "F64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4",
    "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """One tensor: `shape` outermost first, `offset` from the file's start in bytes."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """All a safetensors file says before its data."""

    path: str
    tensors: tuple[SafetensorsTensor, ...]
    metadata: dict[str, Any]
    data_offset: int
    file_size: int


def read_safetensors_header(path: str | Path) -> SafetensorsHeader:
    """Read and check the header of the file at `path`.

    Raises MalformedFile naming field and offset, UnsupportedFeature for other dtypes, OSError.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 10:
            raise MalformedFile(path, "file size", None, "too short for a safetensors header")
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MAX_HEADER_BYTES):
            message = f"{length} bytes, but the file has {size} and the limit is {MAX_HEADER_BYTES}"
            raise MalformedFile(path, "header length", 0, message)
        raw = file.read(length)
    values = parse_json_object(raw, path, "header", 8)
    metadata = values.pop("__metadata__", {})
    data_offset = 8 + length
    tensors = tuple(_tensor(path, name, entry, data_offset, size) for name, entry in values.items())
    ordered = sorted(tensors, key=lambda tensor: tensor.offset)
    for first, second in pairwise(ordered):
        if second.offset < first.offset + first.num_bytes:
            raise MalformedFile(path, f"{second.name} data_offsets", None, f"overlaps tensor {first.name}")
    if not isinstance(metadata, dict):
        raise MalformedFile(path, "__metadata__", 8, "expected an object")
    return SafetensorsHeader(str(path), tensors, metadata, data_offset, size)


def _tensor(path: str | Path, name: str, entry: Any, data_offset: int, size: int) -> SafetensorsTensor:
    if not isinstance(entry, dict):
        raise MalformedFile(path, name, 8, "expected an object with dtype, shape and data_offsets")
    dtype = str(entry.get("dtype"))[:40]
    if dtype in _OTHER_DTYPES:
        raise UnsupportedFeature(f"dtype of tensor {name}", dtype, f"read are {', '.join(DTYPES)}")
    if dtype not in DTYPES:
        raise MalformedFile(path, f"{name} dtype", 8, f"{dtype!r} is unknown")
    shape = _integers(path, f"{name} shape", entry.get("shape"), MAX_DIMS, MAX_DIM)
    offsets = _integers(path, f"{name} data_offsets", entry.get("data_offsets"), 2, 1 << 62)
    num_bytes = prod(shape) * DTYPES[dtype].type_size
    if not shape or not all(shape):
        raise MalformedFile(path, f"{name} shape", 8, f"{list(shape)} is empty or has a zero")
    if len(offsets) != 2 or offsets[1] - offsets[0] != num_bytes:
        message = f"{list(offsets)} do not span the {num_bytes} bytes of shape {list(shape)}"
        raise MalformedFile(path, f"{name} data_offsets", 8, message)
    if data_offset + offsets[1] > size:
        message = f"tensor ends at byte {data_offset + offsets[1]} of a file of {size}"
        raise MalformedFile(path, f"{name} data_offsets", 8, message)
    return SafetensorsTensor(name, shape, DTYPES[dtype], data_offset + offsets[0], num_bytes)


def _integers(path: str | Path, field: str, value: Any, max_count: int, high: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > max_count:
        raise MalformedFile(path, field, 8, f"expected a list of at most {max_count} integers")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= high:
            raise MalformedFile(path, field, 8, f"{str(item)[:40]} is not an integer between 0 and {high}")
    return tuple(value)
