"""Model facts out of GGUF headers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ridgeline.facts.errors import MalformedFile, UnsupportedFeature
from ridgeline.facts.gguf import read_gguf_header
from ridgeline.facts.gguf_spec import model_spec_from_gguf
from ridgeline.facts.model_spec import ModelSpec
from tests.gguf_writer import RawTensor, f32, tiny_metadata, tiny_tensors, write_gguf


def spec_of(
    tmp_path: Path,
    architecture: str = "llama",
    extra: dict[str, RawTensor] | None = None,
    **changes: Any,
) -> ModelSpec:
    metadata = tiny_metadata(architecture)
    for key, item in changes.items():
        name = key.replace("__", ".")
        if item is None:
            metadata.pop(name, None)
        else:
            metadata[name] = item
    path = write_gguf(tmp_path / "m.gguf", metadata, {**tiny_tensors(), **(extra or {})})
    return model_spec_from_gguf(read_gguf_header(path), "tiny")


def test_llama(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    assert (spec.architecture, spec.num_layers, spec.hidden_size, spec.intermediate_size) == (
        "llama",
        2,
        32,
        64,
    )
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.vocab_size) == (4, 2, 8, 16)
    assert spec.tied_embeddings and not spec.attention_bias and not spec.qk_norm
    assert spec.attention_scale == pytest.approx(1 / math.sqrt(8))
    assert (spec.bos_token_id, spec.eos_token_ids) == (1, (2,))
    assert spec.stored_quantization == "F32"
    assert spec.rms_norm_offset == 0.0
    assert all(layer.window is None and layer.rope.theta == 10_000 for layer in spec.layers)


def test_untied_biased_scaled(tmp_path: Path) -> None:
    extra = {
        "output.weight": f32([[0.0] * 32] * 16),
        "blk.0.attn_q.bias": f32([0.0] * 32),
        "rope_freqs.weight": f32([1.0, 1.0, 2.0, 8.0]),
    }
    changes = {"qwen2__rope__scaling__type": "linear", "qwen2__rope__scaling__factor": 4.0}
    spec = spec_of(tmp_path, "qwen2", extra, **changes, tokenizer__ggml__eot_token_id=7)
    assert not spec.tied_embeddings and spec.attention_bias
    assert spec.layers[0].rope.scaling == ("linear", 4.0)
    assert spec.layers[0].rope.freq_factors == (1.0, 1.0, 2.0, 8.0)
    assert spec.eos_token_ids == (2, 7)


def test_gemma3(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        "gemma3",
        gemma3__block_count=7,
        gemma3__attention__sliding_window=64,
        gemma3__rope__freq_base=1e6,
        gemma3__attention__key_length=16,
        gemma3__rope__scaling__type="linear",
        gemma3__rope__scaling__factor=8.0,
    )
    assert [layer.window for layer in spec.layers] == [64, 64, 64, 64, 64, None, 64]
    assert spec.layers[0].rope.theta == 10_000 and spec.layers[0].rope.scaling is None
    assert spec.layers[5].rope.theta == 1e6 and spec.layers[5].rope.scaling == ("linear", 8.0)
    assert spec.head_dim == 16 and spec.attention_scale == 0.25
    assert spec.qk_norm and spec.post_norms and spec.activation == "gelu_tanh"
    assert spec.embedding_scale == pytest.approx(math.sqrt(32))
    assert spec.rms_norm_offset == 0.0, "the file's norms already hold 1 + w"


def test_gemma3_pattern_array(tmp_path: Path) -> None:
    pattern = {"gemma3__attention__sliding_window_pattern": [True, False]}
    spec = spec_of(tmp_path, "gemma3", gemma3__attention__sliding_window=64, **pattern)
    assert [layer.window for layer in spec.layers] == [64, None]


def test_per_layer_arrays_of_one_value_are_that_value(tmp_path: Path) -> None:
    assert spec_of(tmp_path, llama__attention__head_count_kv=[2, 2]).num_kv_heads == 2
    with pytest.raises(UnsupportedFeature, match="head_count_kv"):
        spec_of(tmp_path, llama__attention__head_count_kv=[2, 1])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"general__architecture": "mamba"}, "general.architecture"),
        ({"llama__expert_count": 8}, "llama.expert_count"),
        (
            {"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 4.0},
            "llama.rope.scaling.type",
        ),
        ({"llama__rope__dimension_count": 4}, "llama.rope.dimension_count"),
        ({"llama__attention__value_length": 16}, "llama.attention.value_length"),
    ],
)
def test_unsupported_is_named(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        spec_of(tmp_path, **changes)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"llama__block_count": 1 << 31}, "llama.block_count"),
        ({"llama__block_count": 0}, "llama.block_count"),
        ({"llama__block_count": None}, "llama.block_count"),
        ({"llama__embedding_length": 33}, "token_embd.weight"),
        ({"llama__attention__head_count": 3}, "llama.attention.head_count_kv"),
        ({"llama__attention__head_count": "four"}, "llama.attention.head_count"),
        ({"llama__rope__freq_base": float("nan")}, "llama.rope.freq_base"),
        ({"llama__attention__layer_norm_rms_epsilon": -1.0}, "llama.attention.layer_norm_rms_epsilon"),
        ({"tokenizer__ggml__eos_token_id": -5}, "tokenizer.ggml.eos_token_id"),
        ({"tokenizer__ggml__eot_token_id": 16}, "tokenizer.ggml.eot_token_id"),
        ({"tokenizer__ggml__tokens": ["t"] * 17}, "tokenizer.ggml.tokens"),
        ({"general__architecture": None}, "general.architecture"),
    ],
)
def test_impossible_values_are_refused(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(MalformedFile) as caught:
        spec_of(tmp_path, **changes)
    assert caught.value.field == field


@pytest.mark.parametrize("factors", [[1.0, 2.0], [1.0, 2.0, 3.0, float("inf")], [1.0, 0.0, 1.0, 1.0]])
def test_rope_factors_are_checked(tmp_path: Path, factors: list[float]) -> None:
    with pytest.raises(MalformedFile, match="rope_freqs"):
        spec_of(tmp_path, extra={"rope_freqs.weight": f32(factors)})


def test_default_model(default_model_path: Path) -> None:
    spec = model_spec_from_gguf(read_gguf_header(default_model_path), "smollm2-135m")
    assert (spec.num_layers, spec.hidden_size, spec.num_heads, spec.num_kv_heads) == (30, 576, 9, 3)
    assert (spec.vocab_size, spec.context_length, spec.layers[0].rope.theta) == (49_152, 8_192, 100_000)
    assert spec.tied_embeddings and spec.stored_quantization == "Q4_1"
    assert {stored.kind: (stored.types, stored.count) for stored in spec.stored} == {
        "qkv": (("Q4_1", "Q4_1", "Q4_1"), 30),
        "output": (("Q4_1",), 30),
        "gate_up": (("Q4_1", "Q4_1"), 30),
        "down": (("Q4_1",), 30),
        "embedding": (("Q8_0",), 1),
    }


@pytest.mark.parametrize("key", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_a_soft_cap_that_the_architecture_does_not_apply_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UnsupportedFeature, match=key):
        spec_of(tmp_path, **{f"llama__{key}": 30.0})
