"""Checkpoints as streams: names, row order, shards, and the end that must be empty."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from ridgeline.engine.errors import UnsupportedModel
from ridgeline.engine.source import ModelSource, resolve_source
from ridgeline.facts.errors import MalformedFile
from ridgeline.facts.ggml import GgmlType
from ridgeline.runtime.weights import TensorSource, open_tensors
from ridgeline.runtime.weights.gguf_names import canonical_name, rotate_half_rows
from tests.gguf_writer import RawTensor, f32, tiny_metadata, tiny_tensors, write_gguf


def gguf_source(tmp_path: Path, architecture: str = "llama", **extra: RawTensor) -> ModelSource:
    tensors = {**tiny_tensors(), **{name.replace("__", "."): tensor for name, tensor in extra.items()}}
    return resolve_source(str(write_gguf(tmp_path / "m.gguf", tiny_metadata(architecture), tensors)))


def safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header, data = {}, b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array, dtype="<f4").tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "architecture", "expected"),
    [
        ("token_embd.weight", "llama", "model.embed_tokens.weight"),
        ("output.weight", "qwen2", "lm_head.weight"),
        ("output_norm.weight", "qwen3", "model.norm.weight"),
        ("blk.11.attn_q.bias", "qwen2", "model.layers.11.self_attn.q_proj.bias"),
        ("blk.0.attn_q_norm.weight", "qwen3", "model.layers.0.self_attn.q_norm.weight"),
        ("blk.0.ffn_norm.weight", "llama", "model.layers.0.post_attention_layernorm.weight"),
        ("blk.0.ffn_norm.weight", "gemma3", "model.layers.0.pre_feedforward_layernorm.weight"),
        ("blk.0.post_ffw_norm.weight", "gemma3", "model.layers.0.post_feedforward_layernorm.weight"),
        ("blk.0.post_ffw_norm.weight", "llama", "blk.0.post_ffw_norm.weight"),
        ("blk.0.ffn_gate_exps.weight", "llama", "blk.0.ffn_gate_exps.weight"),
        ("surprise", "llama", "surprise"),
    ],
)
def test_names(name: str, architecture: str, expected: str) -> None:
    assert canonical_name(name, architecture) == expected


def test_rotate_half_rows_undoes_the_interleaving() -> None:
    halves = np.arange(2 * 8).reshape(2, 2, 4)  # head, half, i
    stored = halves.swapaxes(1, 2).reshape(-1)
    np.testing.assert_array_equal(stored[rotate_half_rows(2, 8)], np.arange(16))


def test_llama_query_rows_are_put_in_order(tmp_path: Path) -> None:
    bias = np.arange(32, dtype=np.float32)
    stream = open_tensors(gguf_source(tmp_path, blk__0__attn_q__bias=f32(bias)))
    stored = np.frombuffer(tiny_tensors()["blk.0.attn_q.weight"].data, "<f4").reshape(32, 32)
    order = rotate_half_rows(4, 8)
    query = stream.take("model.layers.0.self_attn.q_proj.weight")
    np.testing.assert_array_equal(query.float32(), stored[order])
    np.testing.assert_array_equal(query.rows(3, 9), stored[order[3:9]])
    np.testing.assert_array_equal(stream.take("model.layers.0.self_attn.q_proj.bias").float32(), bias[order])
    value = stream.take("model.layers.0.self_attn.v_proj.weight")
    assert value.row_permutation is None


def test_other_architectures_keep_their_rows(tmp_path: Path) -> None:
    stream = open_tensors(gguf_source(tmp_path, "qwen2"))
    assert stream.take("model.layers.0.self_attn.q_proj.weight").row_permutation is None


def test_a_stream_ends_empty_or_says_what_is_left(tmp_path: Path) -> None:
    stream = open_tensors(gguf_source(tmp_path, rope_freqs__weight=f32([1.0] * 4), surprise=f32([1.0])))
    assert len(stream) == 21 and stream.num_bytes > 0
    for name in [name for name in stream.remaining() if name != "surprise"]:
        stream.take(name)
    assert stream.remaining() == ("surprise",)
    with pytest.raises(KeyError):
        stream.take("model.norm.weight")
    stream.take("surprise")
    assert stream.remaining() == ()


def test_query_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    wrong = f32(np.zeros((24, 32)))
    with pytest.raises(MalformedFile, match=r"attn_q\.weight"):
        open_tensors(gguf_source(tmp_path, blk__0__attn_q__weight=wrong))


def test_scales_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    bad = RawTensor((2, 32), GgmlType.Q8_0, (b"\x00\x7e" + bytes(32)) * 2)
    stream = open_tensors(gguf_source(tmp_path, bad=bad))
    with pytest.raises(MalformedFile, match="not a number"):
        stream.take("bad")


def test_portions_cover_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ridgeline.runtime.weights.tensor.PORTION_BYTES", 100)
    values = np.arange(7 * 8, dtype="<f4").reshape(7, 8)
    source = TensorSource("t", (7, 8), GgmlType.F32, values.view(np.uint8).reshape(-1))
    starts, rows = zip(*source.portions(), strict=True)
    assert starts == (0, 3, 6)
    np.testing.assert_array_equal(np.concatenate(rows), values)
    np.testing.assert_array_equal(source.float32(), values)


def test_single_and_sharded_folders(tmp_path: Path) -> None:
    a, b = np.ones((2, 3), np.float32), np.zeros((4,), np.float32)
    one, many = tmp_path / "one", tmp_path / "many"
    one.mkdir()
    many.mkdir()
    folder(one)
    safetensors(one / "model.safetensors", {"a": a, "b": b, "x.rotary_emb.inv_freq": b})
    assert open_tensors(resolve_source(str(one))).remaining() == ("a", "b")
    folder(many)
    safetensors(many / "m-1.safetensors", {"a": a})
    safetensors(many / "m-2.safetensors", {"b": b})
    index = {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
    (many / "model.safetensors.index.json").write_text(json.dumps(index))
    stream = open_tensors(resolve_source(str(many)))
    np.testing.assert_array_equal(stream.take("a").float32(), a)
    np.testing.assert_array_equal(stream.take("b").float32(), b)
    assert stream.remaining() == ()


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "../evil.safetensors"},
        {"a": "/etc/passwd"},
        {"a": "pytorch_model.bin"},
        {"a": "missing.safetensors"},
        {"not_there": "m.safetensors"},
        {"a": 3},
        {},
        [],
    ],
)
def test_index_lies_are_refused(tmp_path: Path, weight_map: object) -> None:
    folder(tmp_path)
    safetensors(tmp_path / "m.safetensors", {"a": np.ones((2,), np.float32)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(MalformedFile, match="weight_map"):
        open_tensors(resolve_source(str(tmp_path)))


def test_a_name_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    for name in ("m-1", "m-2"):
        safetensors(tmp_path / f"{name}.safetensors", {name: np.ones(2), "both": np.ones(2)})
    index = {"weight_map": {"m-1": "m-1.safetensors", "m-2": "m-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MalformedFile, match="both"):
        open_tensors(resolve_source(str(tmp_path)))


def test_unsupported_types_are_named(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with pytest.raises(UnsupportedModel, match="I8"):
        open_tensors(resolve_source(str(tmp_path)))


def test_default_model_has_every_tensor_of_its_architecture(default_model: ModelSource) -> None:
    stream = open_tensors(default_model)
    assert len(stream) == 2 + 30 * 9
    table = stream.take("model.embed_tokens.weight")
    assert table.shape == (49_152, 576) and table.type is GgmlType.Q8_0
    assert np.isfinite(table.rows(0, 100)).all()
