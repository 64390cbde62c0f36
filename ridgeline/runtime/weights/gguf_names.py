"""GGUF tensor names -> Hugging Face checkpoint names, by architecture.

Names that are not known come back unchanged, so that a stream which must end empty reports them.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
ATTENTION_AND_MLP = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LAYER = {
    "llama": {**ATTENTION_AND_MLP, "ffn_norm": "post_attention_layernorm"},
    "qwen2": {**ATTENTION_AND_MLP, "ffn_norm": "post_attention_layernorm"},
    "qwen3": {**ATTENTION_AND_MLP, "ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        **ATTENTION_AND_MLP,
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
FACTS_NOT_WEIGHTS = frozenset({"rope_freqs.weight"})
"""Tensors that are part of the ModelSpec and that no model takes."""

_BLOCK = re.compile(r"blk\.(\d+)\.([a-z0-9_]+)\.(weight|bias)")


def canonical_name(name: str, architecture: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    match = _BLOCK.fullmatch(name)
    if match:
        module = LAYER.get(architecture, {}).get(match[2])
        return f"model.layers.{int(match[1])}.{module}.{match[3]}" if module else name
    module, _, kind = name.rpartition(".")
    return f"{TOP[module]}.{kind}" if module in TOP else name


def rotate_half_rows(num_heads: int, head_dim: int) -> npt.NDArray[np.int64]:
    """Which stored row holds each row of q or k in the rotate-half order of Hugging Face.

    llama.cpp's converter stores the two halves of a head interleaved (for the `llama` architecture
    alone): row (head, half, i) is stored at (head, i, half).
    """
    rows = np.arange(num_heads * head_dim, dtype=np.int64)
    return rows.reshape(num_heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
