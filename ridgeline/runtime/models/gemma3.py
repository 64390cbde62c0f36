"""Gemma 3, text (Gemma Team 2025): norms on both sides of each half, and on the heads of q and k.

    x -> rms_norm -> q, k, v -> norms -> rope -> attention -> output -> rms_norm -+->
      `---------------------------------------------------------------------------'
      -> rms_norm -> gated mlp -> rms_norm -+->
      `-------------------------------------'
Window layers and full layers rotate with different theta: `spec.layers[i]` says which.
"""

from __future__ import annotations

from ridgeline.facts.model_spec import ModelSpec
from ridgeline.runtime.models.checkpoint import Checkpoint
from ridgeline.runtime.models.decoder import attention_of
from ridgeline.runtime.ops import Ops, Tensor


class Gemma3Layer:
    """`model.layers.{index}`."""

    def __init__(self, spec: ModelSpec, index: int, checkpoint: Checkpoint) -> None:
        self.spec = spec
        self.rope = spec.layers[index].rope
        self.attention = attention_of(spec, index)
        hidden, inner, offset = spec.hidden_size, spec.intermediate_size, spec.rms_norm_offset
        self.q_size, self.kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        qkv = {
            "self_attn.q_proj": self.q_size,
            "self_attn.k_proj": self.kv_size,
            "self_attn.v_proj": self.kv_size,
        }
        self.input_layernorm = checkpoint.vector("input_layernorm", hidden, offset)
        self.qkv_proj = checkpoint.linear("qkv", qkv, hidden, spec.attention_bias)
        self.q_norm = checkpoint.vector("self_attn.q_norm", spec.head_dim, offset)
        self.k_norm = checkpoint.vector("self_attn.k_norm", spec.head_dim, offset)
        self.o_proj = checkpoint.linear(
            "output", {"self_attn.o_proj": hidden}, self.q_size, spec.attention_bias
        )
        self.post_attention_layernorm = checkpoint.vector("post_attention_layernorm", hidden, offset)
        self.pre_feedforward_layernorm = checkpoint.vector("pre_feedforward_layernorm", hidden, offset)
        self.gate_up_proj = checkpoint.linear(
            "gate_up", {"mlp.gate_proj": inner, "mlp.up_proj": inner}, hidden
        )
        self.down_proj = checkpoint.linear("down", {"mlp.down_proj": hidden}, inner)
        self.post_feedforward_layernorm = checkpoint.vector("post_feedforward_layernorm", hidden, offset)

    def forward(self, ops: Ops, x: Tensor) -> Tensor:
        eps, head_dim = self.spec.rms_norm_eps, self.spec.head_dim
        h = ops.linear(ops.rms_norm(x, self.input_layernorm, eps), self.qkv_proj)
        q, k, v = ops.split(h, self.q_size, self.kv_size, self.kv_size)
        q = ops.rope(ops.rms_norm(q, self.q_norm, eps), self.rope, head_dim)
        k = ops.rope(ops.rms_norm(k, self.k_norm, eps), self.rope, head_dim)
        h = ops.linear(ops.paged_attention(q, k, v, self.attention), self.o_proj)
        x = ops.add(x, ops.rms_norm(h, self.post_attention_layernorm, eps))
        h = ops.rms_norm(x, self.pre_feedforward_layernorm, eps)
        h = ops.gated_mlp(h, self.gate_up_proj, self.down_proj, self.spec.activation)
        return ops.add(x, ops.rms_norm(h, self.post_feedforward_layernorm, eps))
