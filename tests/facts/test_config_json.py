"""Model facts out of Hugging Face configurations, as published models write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ridgeline.facts.config_json import model_spec_from_config
from ridgeline.facts.errors import MalformedFile, UnsupportedFeature
from ridgeline.facts.json_file import read_json_object

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "torch_dtype": "bfloat16",
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "eos_token_id": 2,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "attention_bias": False,
    "sliding_window": None,
    "tie_word_embeddings": True,
}
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "max_position_embeddings": 32768,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "sliding_window": 512,
    "_sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "eos_token_id": 1,
}


def spec(config: dict[str, Any], **changes: Any):
    return model_spec_from_config({**config, **changes}, "m")


def test_llama3() -> None:
    facts = spec(LLAMA)
    assert facts.architecture == "llama" and facts.head_dim == 64
    assert facts.layers[0].rope.scaling == ("llama3", 32.0, 1.0, 4.0, 8192.0)
    assert facts.eos_token_ids == (128001, 128008, 128009) and facts.bos_token_id == 128000
    assert facts.stored_quantization == "bf16"


def test_generation_config_adds_stop_tokens() -> None:
    facts = model_spec_from_config({**LLAMA, "eos_token_id": 5}, "m", {"eos_token_id": [5, 9]})
    assert facts.eos_token_ids == (5, 9)


def test_mistral_windows_and_defaults() -> None:
    facts = spec(MISTRAL)
    assert facts.architecture == "llama" and {layer.window for layer in facts.layers} == {4096}
    assert facts.head_dim == 128 and not facts.tied_embeddings
    assert {layer.window for layer in spec(MISTRAL, sliding_window=None).layers} == {None}


def test_qwen2() -> None:
    facts = spec(QWEN2)
    assert facts.attention_bias and facts.tied_embeddings and not facts.qk_norm
    assert {layer.window for layer in facts.layers} == {None}
    windows = [layer.window for layer in spec(QWEN2, use_sliding_window=True, sliding_window=99).layers]
    assert windows == [None] * 21 + [99] * 3


def test_qwen3() -> None:
    facts = spec(QWEN3)
    assert facts.qk_norm and facts.head_dim == 128 and not facts.attention_bias
    assert facts.attention_scale == pytest.approx(128**-0.5)


@pytest.mark.parametrize(
    "config",
    [
        GEMMA3,
        {**GEMMA3, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3},
        {
            **{key: item for key, item in GEMMA3.items() if not key.startswith("rope_")},
            "rope_parameters": {
                "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            },
        },
    ],
)
def test_gemma3(config: dict[str, Any]) -> None:
    facts = spec(config)
    assert [i for i, layer in enumerate(facts.layers) if layer.window is None] == [5, 11, 17]
    assert (facts.layers[0].rope.theta, facts.layers[5].rope.theta) == (1e4, 1e6)
    assert facts.rms_norm_offset == 1.0 and facts.activation == "gelu_tanh" and facts.tied_embeddings
    assert facts.attention_scale == 1 / 16 and facts.embedding_scale == pytest.approx(640**0.5)


def test_gemma3_scales_full_layers_only() -> None:
    facts = spec(GEMMA3, rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert facts.layers[5].rope.scaling == ("linear", 8.0)
    assert facts.layers[0].rope.scaling is None


@pytest.mark.parametrize(
    ("config", "changes", "field"),
    [
        (LLAMA, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type"),
        (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling.rope_type"),
        (LLAMA, {"quantization_config": {"quant_method": "awq"}}, "quantization_config.quant_method"),
        (LLAMA, {"model_type": "mixtral"}, "model_type"),
        (LLAMA, {"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        (LLAMA, {"num_local_experts": 8}, "num_local_experts"),
        (LLAMA, {"hidden_act": "relu"}, "hidden_act"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA, {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "auto_map"),
        (GEMMA3, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA3, {"model_type": "gemma3", "vision_config": {"x": 1}}, "architectures"),
        (GEMMA3, {"layer_types": ["linear_attention"] * 18}, "layer_types"),
    ],
)
def test_unsupported_is_named(config: dict[str, Any], changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        spec(config, **changes)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "2048"}, "hidden_size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"head_dim": 63}, "head_dim"),
        ({"rope_scaling": []}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"eos_token_id": [2, 128256]}, "eos_token_id"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(MalformedFile) as caught:
        spec(LLAMA, **changes)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"a": 1', '{"a": 1, "a": 2}', "[" * 100_000, b"\xff\xfe{}", '{"a":' * 50_000]
)
def test_json_files_are_objects_or_refused(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MalformedFile):
        read_json_object(path)


def test_json_files_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a": "x" * 1000}))
    assert read_json_object(path, 2000) == {"a": "x" * 1000}
    with pytest.raises(MalformedFile, match="limit of 500"):
        read_json_object(path, 500)
