"""Headers that tell the truth are read; headers that lie are refused by field and offset."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import pytest

from ridgeline.facts.errors import MalformedFile, UnsupportedFeature
from ridgeline.facts.ggml import GgmlType
from ridgeline.facts.gguf import GgufArray, read_gguf_header
from ridgeline.facts.gguf_spec import model_spec_from_gguf
from tests.gguf_writer import RawTensor, f32, gguf_bytes, string, tiny_metadata, tiny_tensors, write_gguf


def read(tmp_path: Path, raw: bytes):
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    return read_gguf_header(path)


def header(num_tensors: int = 0, num_metadata: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_metadata)


def tensor_entry(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    packed = struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
    return string(name) + packed + struct.pack("<IQ", kind, offset)


def test_reads_what_was_written(tmp_path: Path) -> None:
    tensors = {"a": f32([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "b": f32([7.0])}
    metadata = {"x": 5, "y": -3, "z": "häh", "on": True, "f": 0.5, "list": ["p", "q"], "ints": [1, 2, 3]}
    read_back = read_gguf_header(write_gguf(tmp_path / "m.gguf", metadata, tensors))
    assert {k: list(v) if isinstance(v, GgufArray) else v for k, v in read_back.metadata.items()} == metadata
    first, second = read_back.tensors
    assert (first.name, first.shape, first.type, first.num_bytes) == ("a", (2, 3), GgmlType.F32, 24)
    assert first.offset == read_back.data_offset
    assert second.offset == first.offset + 32
    assert read_back.floats(first) == (1, 2, 3, 4, 5, 6)
    assert read_back.tensor("c") is None


def test_default_model_header(default_model_path: Path) -> None:
    read_back = read_gguf_header(default_model_path)
    assert len(read_back.metadata["tokenizer.ggml.tokens"]) == 49_152
    assert read_back.metadata["tokenizer.ggml.tokens"][1] == "<|im_start|>"
    assert len(read_back.tensors) == 272


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"", "file size"),
        (b"GGUF", "file size"),
        (b"PKxx" + header()[4:], "magic"),
        (header(version=7), "version"),
        (header(num_tensors=1 << 60), "tensor_count"),
        (header(num_metadata=(1 << 64) - 1), "metadata_count"),
        (header(num_metadata=1) + bytes(100)[:0] + struct.pack("<Q", 1 << 62) + bytes(32), "metadata key 0"),
        (header(num_metadata=1) + string("") + bytes(32), "metadata key 0"),
        (header(num_metadata=1) + string(b"\xff\xfe") + bytes(32), "metadata key 0"),
        (header(num_metadata=1) + string("k") + struct.pack("<I", 99) + bytes(32), "k"),
        (header(num_metadata=1) + string("k") + struct.pack("<IQ", 8, 1 << 63) + bytes(32), "k"),
        (header(num_metadata=1) + string("k") + struct.pack("<I", 10), "k"),
        (header(num_metadata=1) + string("k") + struct.pack("<IIQ", 9, 4, 1 << 61) + bytes(32), "k"),
        (header(num_metadata=1) + string("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(32), "k"),
        (header(num_metadata=1) + string("k") + struct.pack("<IIQ", 9, 77, 1) + bytes(32), "k"),
        (
            header(num_metadata=1) + string("k") + struct.pack("<IIQQ", 9, 8, 2, (1 << 64) - 9) + bytes(32),
            "k",
        ),
        (header(num_metadata=2) + 2 * (string("k") + struct.pack("<II", 4, 1)), "k"),
        (header(1) + tensor_entry("t", [], 0, 0) + bytes(64), "t num_dims"),
        (header(1) + tensor_entry("t", [1] * 5, 0, 0) + bytes(64), "t num_dims"),
        (header(1) + tensor_entry("t", [0], 0, 0) + bytes(64), "t dims"),
        (header(1) + tensor_entry("t", [1 << 40, 1 << 40], 0, 0) + bytes(64), "t dims"),
        (header(1) + tensor_entry("t", [33, 1], 3, 0) + bytes(99), "t dims"),
        (header(1) + tensor_entry("t", [8], 4000, 0) + bytes(99), "t type"),
        (header(1) + tensor_entry("t", [8], 0, 4) + bytes(99), "t offset"),
        (header(1) + tensor_entry("t", [8], 0, 1 << 40) + bytes(99), "t offset"),
        (header(1) + tensor_entry("t", [8], 0, (1 << 64) - 32) + bytes(99), "t offset"),
        (header(2) + tensor_entry("t", [8], 0, 0) + tensor_entry("t", [8], 0, 32) + bytes(99), "t name"),
        (header(2) + tensor_entry("t", [8], 0, 0) + tensor_entry("u", [8], 0, 0) + bytes(99), "u offset"),
        (header(1) + tensor_entry("t" * 2000, [8], 0, 0) + bytes(99), "name of tensor 0"),
    ],
)
def test_lies_are_refused_by_field(tmp_path: Path, raw: bytes, field: str) -> None:
    with pytest.raises(MalformedFile) as caught:
        read(tmp_path, raw)
    assert caught.value.field == field
    assert caught.value.offset is None or 0 <= caught.value.offset <= len(raw)


@pytest.mark.parametrize("alignment", [0, 3, 1 << 20, "32", True, -32, 0.5])
def test_absurd_alignment_is_refused(tmp_path: Path, alignment: object) -> None:
    with pytest.raises(MalformedFile, match=r"general\.alignment"):
        read(tmp_path, gguf_bytes({"general.alignment": alignment}, {"t": f32([1.0])}))


def test_other_alignment_is_honoured(tmp_path: Path) -> None:
    raw = gguf_bytes({"general.alignment": 64}, {"t": f32([1.0]), "u": f32([2.0])}, alignment=64)
    read_back = read(tmp_path, raw)
    assert read_back.data_offset % 64 == 0
    assert [read_back.floats(t) for t in read_back.tensors] == [(1.0,), (2.0,)]


def test_what_is_known_but_not_read_is_named(tmp_path: Path) -> None:
    for raw, value in (
        (header(version=1), 1),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (header(1) + tensor_entry("t", [256], 16, 0) + bytes(200), "IQ2_XXS"),
    ):
        with pytest.raises(UnsupportedFeature) as caught:
            read(tmp_path, raw)
        assert caught.value.value == value


def test_strings_that_are_not_utf8_are_refused_when_decoded(tmp_path: Path) -> None:
    raw = header(num_metadata=1) + string("k") + struct.pack("<IIQ", 9, 8, 1) + string(b"\xff") + bytes(16)
    array = read(tmp_path, raw).metadata["k"]
    assert array.raw_strings() == [b"\xff"]
    with pytest.raises(MalformedFile, match="UTF-8"):
        array.items()


def small_file() -> bytes:
    tensors = tiny_tensors()
    tensors["rope_freqs.weight"] = f32([1.0, 1.5, 2.0, 4.0])
    tensors["extra"] = RawTensor((4, 64), GgmlType.Q8_0, bytes(4 * 68))
    return gguf_bytes(tiny_metadata(), tensors)


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """A few bytes, words, cuts or moved pieces changed, mostly in the header."""
    data = bytearray(raw)
    reach = min(len(data), 2_600)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(reach)
        action = rng.randrange(5)
        if action == 0:
            data[at] = rng.randrange(256)
        elif action == 1:
            data[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 9, 1 << 31, 1 << 62, (1 << 64) - 1)))
        elif action == 2:
            data[at : at + 4] = struct.pack("<I", rng.choice((0, 8, 9, 12, 255, 1 << 31, (1 << 32) - 1)))
        elif action == 3:
            del data[at : at + rng.randrange(1, 64)]
        else:
            data[at:at] = data[at : at + rng.randrange(1, 64)]
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)


def test_mutated_files_only_ever_raise_the_two_errors(tmp_path: Path) -> None:
    original, rng, path = small_file(), random.Random(2), tmp_path / "fuzzed.gguf"
    refused = 0
    tracemalloc.start()
    for _ in range(3_000):
        path.write_bytes(mutate(original, rng))
        try:
            read_back = read_gguf_header(path)
            for item in read_back.metadata.values():
                if isinstance(item, GgufArray):
                    item.items()
            model_spec_from_gguf(read_back, "fuzzed")
        except (MalformedFile, UnsupportedFeature):
            refused += 1
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused > 1_000
    assert peak_bytes < 40 * len(original), "memory must be bounded by the file, not by what it claims"
