"""Qwen3 (Yang et al. 2025): Llama's layer with a norm on each head of q and k before the rotation."""

from __future__ import annotations

from ridgeline.facts.model_spec import ModelSpec
from ridgeline.runtime.models.checkpoint import Checkpoint
from ridgeline.runtime.models.decoder import attention_of
from ridgeline.runtime.ops import Ops, Tensor


class Qwen3Layer:
    """`model.layers.{index}`."""

    def __init__(self, spec: ModelSpec, index: int, checkpoint: Checkpoint) -> None:
        self.spec = spec
        self.rope = spec.layers[index].rope
        self.attention = attention_of(spec, index)
        hidden, inner = spec.hidden_size, spec.intermediate_size
        self.q_size, self.kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        qkv = {
            "self_attn.q_proj": self.q_size,
            "self_attn.k_proj": self.kv_size,
            "self_attn.v_proj": self.kv_size,
        }
        self.input_layernorm = checkpoint.vector("input_layernorm", hidden)
        self.qkv_proj = checkpoint.linear("qkv", qkv, hidden, spec.attention_bias)
        self.q_norm = checkpoint.vector("self_attn.q_norm", spec.head_dim)
        self.k_norm = checkpoint.vector("self_attn.k_norm", spec.head_dim)
        self.o_proj = checkpoint.linear(
            "output", {"self_attn.o_proj": hidden}, self.q_size, spec.attention_bias
        )
        self.post_attention_layernorm = checkpoint.vector("post_attention_layernorm", hidden)
        self.gate_up_proj = checkpoint.linear(
            "gate_up", {"mlp.gate_proj": inner, "mlp.up_proj": inner}, hidden
        )
        self.down_proj = checkpoint.linear("down", {"mlp.down_proj": hidden}, inner)

    def forward(self, ops: Ops, x: Tensor) -> Tensor:
        eps, head_dim = self.spec.rms_norm_eps, self.spec.head_dim
        h = ops.linear(ops.rms_norm(x, self.input_layernorm, eps), self.qkv_proj)
        q, k, v = ops.split(h, self.q_size, self.kv_size, self.kv_size)
        q = ops.rope(ops.rms_norm(q, self.q_norm, eps), self.rope, head_dim)
        k = ops.rope(ops.rms_norm(k, self.k_norm, eps), self.rope, head_dim)
        x = ops.add(x, ops.linear(ops.paged_attention(q, k, v, self.attention), self.o_proj))
        h = ops.rms_norm(x, self.post_attention_layernorm, eps)
        return ops.add(x, ops.gated_mlp(h, self.gate_up_proj, self.down_proj, self.spec.activation))
