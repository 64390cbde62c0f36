"""ModelSpec from a Hugging Face `config.json` (and `generation_config.json` for its stop tokens).

Defaults are those of the architecture's configuration class in transformers. What would change
the mathematics and is not handled is refused by name; code in a repository (`auto_map`) is never run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from ridgeline.facts.checked import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, Checked
from ridgeline.facts.errors import UnsupportedFeature
from ridgeline.facts.model_spec import Activation, LayerSpec, ModelSpec, RopeSpec

Architecture = Literal["llama", "qwen2", "qwen3", "gemma3"]

MODEL_TYPES: dict[str, Architecture] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
}
_CAUSAL_CLASSES = {
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma3ForCausalLM",
}
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_DTYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
_DEFAULT_CONTEXT = {"gemma3": 131_072, "qwen2": 32_768, "qwen3": 32_768}


def model_spec_from_config(
    config: Mapping[str, Any], name: str, generation_config: Mapping[str, Any] | None = None
) -> ModelSpec:
    """The facts of the model that `config` describes.

    Raises MalformedFile for a value that cannot be, UnsupportedFeature for one that is not handled.
    """
    facts = Checked(config, name)
    architecture = _architecture(facts)
    _refuse_unsupported(facts)
    gemma = architecture == "gemma3"
    num_layers = facts.integer("num_hidden_layers", 1, MAX_LAYERS)
    hidden = facts.integer("hidden_size", 1, MAX_WIDTH)
    num_heads = facts.integer("num_attention_heads", 1, MAX_HEADS)
    num_kv_heads = facts.integer("num_key_value_heads", 1, MAX_HEADS, num_heads)
    if num_heads % num_kv_heads:
        raise facts.refuse("num_key_value_heads", f"{num_kv_heads} does not divide {num_heads} heads")
    head_dim = _head_dim(facts, architecture, hidden, num_heads)
    vocab_size = facts.integer("vocab_size", 1, MAX_VOCABULARY)
    return ModelSpec(
        name=name,
        architecture=architecture,
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=facts.integer("intermediate_size", 1, MAX_WIDTH),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        context_length=facts.integer(
            "max_position_embeddings", 1, MAX_CONTEXT, _DEFAULT_CONTEXT.get(architecture, 2_048)
        ),
        rms_norm_eps=facts.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        layers=_layers(facts, architecture, num_layers, head_dim),
        activation=_activation(facts, architecture),
        tied_embeddings=facts.flag("tie_word_embeddings", gemma),
        attention_scale=_attention_scale(facts, architecture, head_dim),
        attention_bias=architecture == "qwen2" or facts.flag("attention_bias", False),
        mlp_bias=facts.flag("mlp_bias", False),
        qk_norm=architecture in ("qwen3", "gemma3"),
        post_norms=gemma,
        embedding_scale=math.sqrt(hidden) if gemma else 1.0,
        rms_norm_offset=1.0 if gemma else 0.0,
        attention_softcap=facts.number("attn_logit_softcapping", 1e-3, 1e6, None) if gemma else None,
        final_softcap=facts.number("final_logit_softcapping", 1e-3, 1e6, None) if gemma else None,
        bos_token_id=next(iter(facts.token_ids("bos_token_id", vocab_size)), None),
        eos_token_ids=_eos_token_ids(facts, generation_config, vocab_size),
        stored_quantization=_DTYPES.get(str(facts.get("dtype") or facts.get("torch_dtype")), "unknown"),
    )


def _architecture(facts: Checked) -> Architecture:
    model_type = facts.text("model_type")
    classes = facts.get("architectures") or []
    if not isinstance(classes, list):
        raise facts.refuse("architectures", "expected a list of class names")
    if facts.get("vision_config") or facts.get("audio_config"):
        raise UnsupportedFeature(
            "architectures", classes or model_type, "multimodal; only text models are served"
        )
    if model_type not in MODEL_TYPES:
        raise UnsupportedFeature("model_type", model_type, f"known are {', '.join(MODEL_TYPES)}")
    for class_name in classes:
        if class_name not in _CAUSAL_CLASSES:
            raise UnsupportedFeature("architectures", class_name, "only causal language models are served")
    return MODEL_TYPES[model_type]


def _refuse_unsupported(facts: Checked) -> None:
    if facts.get("quantization_config"):
        section = facts.section("quantization_config")
        method = section.get("quant_method") if section else None
        raise UnsupportedFeature(
            "quantization_config.quant_method", method, "load unquantized safetensors or GGUF"
        )
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if facts.get(key):
            raise UnsupportedFeature(key, facts.get(key), "mixture of experts")
    if facts.get("use_bidirectional_attention"):
        raise UnsupportedFeature("use_bidirectional_attention", True, "an encoder")
    if facts.number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0:
        raise UnsupportedFeature("partial_rotary_factor", facts.get("partial_rotary_factor"))
    auto_map = facts.get("auto_map")
    if isinstance(auto_map, Mapping) and any(str(key).startswith("AutoModel") for key in auto_map):
        raise UnsupportedFeature("auto_map", dict(auto_map), "code from a model's repository is never run")


def _head_dim(facts: Checked, architecture: str, hidden: int, num_heads: int) -> int:
    default = {"gemma3": 256, "qwen3": 128}.get(architecture, hidden // num_heads)
    head_dim = int(facts.integer("head_dim", 2, 1_024, default))
    if head_dim < 2 or head_dim % 2:
        raise facts.refuse("head_dim", f"a head of {head_dim} cannot be rotated")
    return head_dim


def _activation(facts: Checked, architecture: str) -> Activation:
    keys = ("hidden_activation", "hidden_act") if architecture == "gemma3" else ("hidden_act",)
    default = "gelu_pytorch_tanh" if architecture == "gemma3" else "silu"
    named = next((facts.text(key) for key in keys if facts.get(key) is not None), default)
    if named not in _ACTIVATIONS:
        raise UnsupportedFeature("hidden_act", named, f"known are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[named]


def _attention_scale(facts: Checked, architecture: str, head_dim: int) -> float:
    if architecture == "gemma3":
        return 1.0 / math.sqrt(facts.number("query_pre_attn_scalar", 1e-3, 1e6, 256.0))
    return 1.0 / math.sqrt(head_dim)


def _eos_token_ids(
    facts: Checked, generation_config: Mapping[str, Any] | None, vocab_size: int
) -> tuple[int, ...]:
    ids = list(facts.token_ids("eos_token_id", vocab_size))
    if generation_config:
        generation = Checked(generation_config, f"{facts.name} generation_config")
        ids += generation.token_ids("eos_token_id", vocab_size)
    return tuple(dict.fromkeys(ids))


# -- layers: windows and rotary embeddings --


def _layers(facts: Checked, architecture: str, num_layers: int, head_dim: int) -> tuple[LayerSpec, ...]:
    kinds = _layer_kinds(facts, architecture, num_layers)
    default_window = 4_096 if architecture == "gemma3" else None
    window = facts.integer("sliding_window", 1, MAX_CONTEXT, default_window)
    if window is None and "sliding_attention" in kinds:
        raise facts.refuse("sliding_window", "is missing, though layer_types has windows")
    specs = {
        "full_attention": LayerSpec(None, _rope(facts, architecture, head_dim, "full_attention")),
        "sliding_attention": LayerSpec(window, _rope(facts, architecture, head_dim, "sliding_attention")),
    }
    return tuple(specs[kind] for kind in kinds)


def _layer_kinds(facts: Checked, architecture: str, num_layers: int) -> list[str]:
    kinds = facts.get("layer_types")
    if kinds is None:
        return _default_kinds(facts, architecture, num_layers)
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise facts.refuse("layer_types", f"expected a list of {num_layers} names")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedFeature("layer_types", kind, "known are full_attention, sliding_attention")
    return kinds


def _default_kinds(facts: Checked, architecture: str, num_layers: int) -> list[str]:
    if architecture == "gemma3":
        key = "sliding_window_pattern" if facts.get("sliding_window_pattern") else "_sliding_window_pattern"
        period = facts.integer(key, 1, MAX_LAYERS, 6)
        windowed = [(layer + 1) % period != 0 for layer in range(num_layers)]
    elif architecture in ("qwen2", "qwen3"):
        first = facts.integer("max_window_layers", 0, MAX_LAYERS, 28)
        windowed = [facts.flag("use_sliding_window", False) and n >= first for n in range(num_layers)]
    else:
        mistral = facts.get("model_type") == "mistral" and facts.get("sliding_window") is not None
        windowed = [mistral] * num_layers
    return ["sliding_attention" if is_windowed else "full_attention" for is_windowed in windowed]


def _rope(facts: Checked, architecture: str, head_dim: int, kind: str) -> RopeSpec:
    """The rotary embedding of one kind of layer, from the old keys or the newer `rope_parameters`."""
    local = architecture == "gemma3" and kind == "sliding_attention"
    default_theta = (10_000.0 if local else 1e6) if architecture == "gemma3" else 10_000.0
    section = facts.section("rope_parameters")
    if section is not None:
        section = section.section(kind) or section
        if any(isinstance(section.get(k), Mapping) for k in ("full_attention", "sliding_attention")):
            raise section.refuse(kind, "is missing")
        theta = section.number("rope_theta", 1.0, 1e12, default_theta)
        return RopeSpec(theta, head_dim, _rope_scaling(section))
    if local:
        return RopeSpec(facts.number("rope_local_base_freq", 1.0, 1e12, default_theta), head_dim)
    theta = facts.number("rope_theta", 1.0, 1e12, default_theta)
    scaling = facts.section("rope_scaling")
    return RopeSpec(theta, head_dim, None if scaling is None else _rope_scaling(scaling))


def _rope_scaling(section: Checked) -> tuple[str | float, ...] | None:
    kind = section.text("rope_type", None) or section.text("type", "default")
    if kind == "default":
        return None
    if kind == "linear":
        return ("linear", section.number("factor", 1e-6, 1e6))
    if kind == "llama3":
        low = section.number("low_freq_factor", 1e-6, 1e6)
        high = section.number("high_freq_factor", 1e-6, 1e6)
        if high <= low:
            raise section.refuse("high_freq_factor", f"{high} must exceed low_freq_factor {low}")
        original = section.number("original_max_position_embeddings", 1, MAX_CONTEXT)
        return ("llama3", section.number("factor", 1e-6, 1e6), low, high, original)
    raise UnsupportedFeature("rope_scaling.rope_type", kind, "known are default, linear, llama3")
