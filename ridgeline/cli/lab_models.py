"""Well-known models as `ModelSpec`, for labs that compute with a model instead of running it.

Sizes are those of each model's public config.json.
"""

from __future__ import annotations

from typing import Any

from ridgeline.cli.labs import LabError
from ridgeline.facts.config_json import model_spec_from_config
from ridgeline.facts.model_spec import ModelSpec

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _config(
    model_type: str, layers: int, hidden: int, mlp: int, heads: int, kv_heads: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-5,
        "hidden_act": "gelu_pytorch_tanh" if model_type == "gemma3_text" else "silu",
        "torch_dtype": "bfloat16",
        **more,
    }


_CONFIGS = {
    "SmolLM2-135M": _config(
        "llama", 30, 576, 1536, 9, 3, 49_152,
        tie_word_embeddings=True, max_position_embeddings=8192, rope_theta=100_000.0,
    ),
    "Llama-2-7B": _config(
        "llama", 32, 4096, 11_008, 32, 32, 32_000,
        tie_word_embeddings=False, max_position_embeddings=4096, rope_theta=10_000.0,
    ),
    "Llama-3.1-8B": _config(
        "llama", 32, 4096, 14_336, 32, 8, 128_256, tie_word_embeddings=False,
        max_position_embeddings=131_072, rope_theta=500_000.0, rope_scaling=_LLAMA3_ROPE,
    ),
    "Llama-3.1-70B": _config(
        "llama", 80, 8192, 28_672, 64, 8, 128_256, tie_word_embeddings=False,
        max_position_embeddings=131_072, rope_theta=500_000.0, rope_scaling=_LLAMA3_ROPE,
    ),
    "Gemma-3-1B": _config(
        "gemma3_text", 26, 1152, 6912, 4, 1, 262_144,
        head_dim=256, query_pre_attn_scalar=256, sliding_window=512, sliding_window_pattern=6,
        max_position_embeddings=32_768, rope_theta=1_000_000.0, rope_local_base_freq=10_000.0,
    ),
    "Gemma-3-27B": _config(
        "gemma3_text", 62, 5376, 21_504, 32, 16, 262_208,
        head_dim=128, query_pre_attn_scalar=168, sliding_window=1024, sliding_window_pattern=6,
        max_position_embeddings=131_072, rope_theta=1_000_000.0, rope_local_base_freq=10_000.0,
    ),
}  # fmt: skip

MODEL_NAMES = tuple(_CONFIGS)


def known_model(name: str) -> ModelSpec:
    """The facts of one of `MODEL_NAMES`."""
    if name not in _CONFIGS:
        raise LabError(f"model: no {name!r} among {', '.join(MODEL_NAMES)}")
    return model_spec_from_config(_CONFIGS[name], name)
