"""A minimal GGUF writer for tests: version 3, little-endian, nothing but what is asked for."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.facts.ggml import GgmlType


@dataclass
class RawTensor:
    """`shape` outermost first; `data` as it is stored."""

    shape: Sequence[int]
    type: GgmlType
    data: bytes


def f32(values: npt.ArrayLike) -> RawTensor:
    array = np.asarray(values, dtype="<f4")
    return RawTensor(array.shape, GgmlType.F32, array.tobytes())


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(item: Any) -> bytes:
    """Type number and value: bool, int (u32, or i64 when negative), float (f32), str, list."""
    if isinstance(item, list):
        kind, _ = _kind(item[0]) if item else (4, b"")
        return struct.pack("<IIQ", 9, kind, len(item)) + b"".join(_kind(x)[1] for x in item)
    kind, raw = _kind(item)
    return struct.pack("<I", kind) + raw


def _kind(item: Any) -> tuple[int, bytes]:
    if isinstance(item, bool):
        return 7, struct.pack("<?", item)
    if isinstance(item, int):
        return (4, struct.pack("<I", item)) if item >= 0 else (11, struct.pack("<q", item))
    if isinstance(item, float):
        return 6, struct.pack("<f", item)
    return 8, string(item)


def gguf_bytes(metadata: Mapping[str, Any], tensors: Mapping[str, RawTensor], alignment: int = 32) -> bytes:
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, item in metadata.items():
        out += string(key) + value(item)
    data = b""
    for name, tensor in tensors.items():
        dims = list(reversed(tensor.shape))
        out += string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        out += struct.pack("<IQ", int(tensor.type), len(data))
        data += tensor.data + bytes(-len(tensor.data) % alignment)
    return out + bytes(-len(out) % alignment) + data


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, RawTensor]) -> Path:
    path.write_bytes(gguf_bytes(metadata, tensors))
    return path


def tiny_metadata(architecture: str = "llama", **changes: Any) -> dict[str, Any]:
    """2 layers, hidden 32, 4 heads of 8, 2 KV heads, vocabulary 16. None removes a key."""
    values: dict[str, Any] = {
        "general.architecture": architecture,
        f"{architecture}.block_count": 2,
        f"{architecture}.context_length": 128,
        f"{architecture}.embedding_length": 32,
        f"{architecture}.feed_forward_length": 64,
        f"{architecture}.attention.head_count": 4,
        f"{architecture}.attention.head_count_kv": 2,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.freq_base": 10000.0,
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(16)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    for key, item in changes.items():
        values[key] = item
    return {key: item for key, item in values.items() if item is not None}


def tiny_tensors(seed: int = 0) -> dict[str, RawTensor]:
    """The tensors of a tiny llama whose q and k are stored as they come."""
    rng = np.random.default_rng(seed)
    shapes = {"token_embd.weight": (16, 32), "output_norm.weight": (32,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (32,),
            f"blk.{layer}.attn_q.weight": (32, 32),
            f"blk.{layer}.attn_k.weight": (16, 32),
            f"blk.{layer}.attn_v.weight": (16, 32),
            f"blk.{layer}.attn_output.weight": (32, 32),
            f"blk.{layer}.ffn_norm.weight": (32,),
            f"blk.{layer}.ffn_gate.weight": (64, 32),
            f"blk.{layer}.ffn_up.weight": (64, 32),
            f"blk.{layer}.ffn_down.weight": (32, 64),
        }
    return {name: f32(rng.standard_normal(shape)) for name, shape in shapes.items()}
