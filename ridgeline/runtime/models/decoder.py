"""What all architectures share: a stack of layers between an embedding and a head.

    token ids -> embed -> layer 0 .. layer n - 1 -> the rows with logits -> rms_norm -> head -> logits

How a layer goes is the architecture's own file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ridgeline.facts.model_spec import ModelSpec
from ridgeline.runtime.models.checkpoint import Checkpoint
from ridgeline.runtime.ops import AttentionSpec, Ops, Tensor


class Layer(Protocol):
    """`model.layers.{index}`: `[n, hidden] -> [n, hidden]`."""

    def forward(self, ops: Ops, x: Tensor) -> Tensor: ...


MakeLayer = Callable[[ModelSpec, int, Checkpoint], Layer]
"""From (spec, index, the checkpoint below `model.layers.{index}`)."""


class Decoder:
    """`spec.num_layers` layers over scaled embeddings; `lm_head` is the embedding where tied."""

    def __init__(self, spec: ModelSpec, checkpoint: Checkpoint, layer: MakeLayer) -> None:
        self.spec = spec
        vocab, hidden = spec.vocab_size, spec.hidden_size
        self.embed_tokens = checkpoint.embedding("model.embed_tokens", vocab, hidden)
        self.layers = [
            layer(spec, index, checkpoint.at(f"model.layers.{index}")) for index in range(spec.num_layers)
        ]
        self.norm = checkpoint.vector("model.norm", hidden, spec.rms_norm_offset)
        self.lm_head = (
            checkpoint.backend.tied_head(self.embed_tokens)
            if spec.tied_embeddings
            else checkpoint.linear("head", {"lm_head": vocab}, hidden)
        )

    def forward(self, ops: Ops) -> Tensor:
        x = ops.embed(self.embed_tokens, self.spec.embedding_scale)
        for layer in self.layers:
            x = layer.forward(ops, x)
        x = ops.rms_norm(ops.select_logit_rows(x), self.norm, self.spec.rms_norm_eps)
        return ops.logits(x, self.lm_head, self.spec.final_softcap)


def attention_of(spec: ModelSpec, index: int) -> AttentionSpec:
    """The attention of layer `index`."""
    return AttentionSpec(
        layer=index,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        scale=spec.attention_scale,
        window=spec.layers[index].window,
        softcap=spec.attention_softcap,
    )
