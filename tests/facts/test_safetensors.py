"""Safetensors headers: truth is read, lies are refused."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from ridgeline.facts.errors import MalformedFile, UnsupportedFeature
from ridgeline.facts.ggml import GgmlType
from ridgeline.facts.safetensors import read_safetensors_header


def entry(dtype: str = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def read(tmp_path: Path, header: Any, data: bytes = bytes(48), length: int | None = None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return read_safetensors_header(path)


def test_reads(tmp_path: Path) -> None:
    header = read(
        tmp_path, {"__metadata__": {"format": "pt"}, "a": entry(), "b": entry("BF16", [4], [24, 32])}
    )
    a, b = header.tensors
    assert (a.shape, a.type, a.num_bytes, a.offset) == ((2, 3), GgmlType.F32, 24, header.data_offset)
    assert (b.shape, b.type, b.offset) == ((4,), GgmlType.BF16, header.data_offset + 24)
    assert header.metadata == {"format": "pt"}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(offsets=[0, 25])},
        {"a": entry(offsets=[24, 0])},
        {"a": entry(offsets=[40, 64])},
        {"a": entry(offsets=[1 << 61, (1 << 61) + 24])},
        {"a": entry(offsets=[-4, 20])},
        {"a": entry(offsets=[0])},
        {"a": entry(offsets="0,24")},
        {"a": entry(shape=[])},
        {"a": entry(shape=[0], offsets=[0, 0])},
        {"a": entry(shape=[True, 6])},
        {"a": entry(shape=[1 << 40, 1 << 40])},
        {"a": entry(shape=[1] * 9)},
        {"a": entry(dtype="X32")},
        {"a": entry(dtype=["F32"])},
        {"a": 3},
        {"a": entry(), "b": entry("F32", [2, 3], [12, 36])},
        {"__metadata__": 5},
        [1, 2],
        b"{not json",
        b"[" * 50_000,
        b'{"a": 1, "a": 2}',
    ],
)
def test_lies_are_refused(tmp_path: Path, header: Any) -> None:
    with pytest.raises(MalformedFile):
        read(tmp_path, header)


@pytest.mark.parametrize("length", [1 << 63, 10_000, 100_000_001])
def test_header_length_is_checked(tmp_path: Path, length: int) -> None:
    with pytest.raises(MalformedFile, match="header length"):
        read(tmp_path, {"a": entry()}, length=length)


def test_other_dtypes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFeature, match="F8_E4M3"):
        read(tmp_path, {"a": entry("F8_E4M3", [24], [0, 24])})


def test_mutations_only_raise_the_two_errors(tmp_path: Path) -> None:
    rng = random.Random(1)
    original = json.dumps({"a": entry(), "b": entry("F16", [12], [24, 48])}).encode()
    for _ in range(1_000):
        raw = bytearray(original)
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(len(raw))] = rng.choice(b'0189{}[]",:-eE.x\xff')
        try:
            read(tmp_path, bytes(raw))
        except (MalformedFile, UnsupportedFeature):
            continue
