"""Tiny models of every architecture, their weights drawn from a numpy seed.

They are described by Hugging Face configs, so that transformers and Ridgeline read one description.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

COMMON: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**COMMON, "model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "llama3": {
        **COMMON,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3_SCALING,
        "tie_word_embeddings": True,
    },
    "llama_bias": {
        **COMMON,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_key_value_heads": 4,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "mistral": {
        **COMMON,
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "sliding_window": 24,
        "num_key_value_heads": 1,
    },
    "qwen2": {
        **{k: v for k, v in COMMON.items() if k != "head_dim"},
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "rope_theta": 1000000.0,
    },
    "qwen3": {
        **COMMON,
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
    },
    "gemma3": {
        **{k: v for k, v in COMMON.items() if k != "hidden_act"},
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": 5,
        "layer_types": [
            "sliding_attention",
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "sliding_attention",
        ],
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
        "head_dim": 32,
        "num_key_value_heads": 1,
        "sliding_window": 24,
        "tie_word_embeddings": True,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
}
NUM_PROMPT_TOKENS = 90


def parameter_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the checkpoint that `config` describes."""
    kind, d, inner = config["model_type"], config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim", d // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], d)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        matrices = {"self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d)}
        matrices |= {"self_attn.o_proj": (d, q), "mlp.gate_proj": (inner, d), "mlp.up_proj": (inner, d)}
        matrices |= {"mlp.down_proj": (d, inner)}
        shapes |= {f"{at}{name}.weight": shape for name, shape in matrices.items()}
        biased = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"} if kind == "qwen2" else set()
        biased |= {n for n in matrices if config.get("attention_bias") and "self_attn" in n}
        biased |= {n for n in matrices if config.get("mlp_bias") and "mlp" in n}
        shapes |= {f"{at}{name}.bias": matrices[name][:1] for name in matrices if name in biased}
        norms = {"input_layernorm": d, "post_attention_layernorm": d}
        if kind in ("qwen3", "gemma3_text"):
            norms |= {"self_attn.q_norm": head_dim, "self_attn.k_norm": head_dim}
        if kind == "gemma3_text":
            norms |= {"pre_feedforward_layernorm": d, "post_feedforward_layernorm": d}
        shapes |= {f"{at}{name}.weight": (size,) for name, size in norms.items()}
    shapes["model.norm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], d)
    return shapes


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Array]:
    """Weights large enough that attention is far from uniform; each tensor has its own stream of numbers."""
    result = {}
    for name, shape in parameter_shapes(config).items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = rng.standard_normal(shape)
        if len(shape) == 2:
            values *= 1.0 if "embed" in name else 2.0 / np.sqrt(shape[1])
        elif "norm" in name:
            values = values * 0.2 + (0.0 if config["model_type"] == "gemma3_text" else 1.0)
        result[name] = values.astype(np.float32)
    return result


def prompt(config: dict[str, Any], seed: int = 0, length: int = NUM_PROMPT_TOKENS) -> list[int]:
    """Random token ids, neither bos nor eos."""
    rng = np.random.default_rng([7, seed])
    return [int(t) for t in rng.integers(3, config["vocab_size"], length)]


def write_checkpoint(folder: Path, name: str) -> None:
    """The tiny model `name` as a folder of `config.json` and `model.safetensors` (float32)."""
    config, header, offset = CONFIGS[name], dict[str, Any](), 0
    arrays = tensors(config)
    for key, values in arrays.items():
        span = [offset, offset + values.nbytes]
        header[key] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in arrays.values():
            file.write(values.tobytes())
