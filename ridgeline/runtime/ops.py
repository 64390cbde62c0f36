"""The protocol a model is written in. A backend implements it; a model never asks which.

Three implementations exist or are planned: `reference` (numpy float32, evaluates at once: the
definition of every op), `native` (records the calls of one step as a tape of C++ kernels and
replays it with one call a step) and `torch`. Hence the rule for models: `forward` may not look at
values or at `num_tokens`; it is a straight line of op calls that depends on the ModelSpec alone.

Shapes: n tokens of this step from all requests, concatenated in row order; d a feature width.
A `Tensor` and a `Weight` are opaque: whatever the backend makes of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ridgeline.facts.model_spec import Activation, RopeSpec

Tensor = Any
Weight = Any


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One layer's attention, all that `paged_attention` must know besides q, k, v.

    `layer` indexes the model's layers; the KV cache maps it to (group, slot in the page).
    """

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None


class Ops(Protocol):
    """Tensor operations of one step."""

    def embed(self, table: Weight, scale: float = 1.0) -> Tensor:
        """Rows of `table` for the step's token ids, times `scale`: `[n, hidden]` float32."""
        ...

    def rms_norm(self, x: Tensor, weight: Weight, eps: float) -> Tensor:
        """x / rms(x) * weight over each consecutive group of `len(weight)` features of `[n, d]`.

        With `len(weight) == d` the usual RMSNorm (Zhang & Sennrich 2019); with `head_dim`, the
        per-head norm of Qwen3 and Gemma 3.
        """
        ...

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """x @ W.T + bias: `[n, in] -> [n, out]`. Stacked matrices (q, k, v) are one Weight."""
        ...

    def split(self, x: Tensor, *sizes: int) -> tuple[Tensor, ...]:
        """Views of consecutive feature ranges."""
        ...

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, the residual connection. A backend may fuse it into the producer of y."""
        ...

    def rope(self, x: Tensor, rope: RopeSpec, head_dim: int) -> Tensor:
        """Rotate each head of `[n, H * head_dim]` by its token's position (rotate-half, Su et al. 2021)."""
        ...

    def paged_attention(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        """Write k, v at the step's positions into the paged cache, then attend causally over it.

        `[n, H*hd], [n, KH*hd], [n, KH*hd] -> [n, H*hd]`; grouped-query when H > KH (Ainslie et al. 2023).
        """
        ...

    def gated_mlp(self, x: Tensor, gate_up: Weight, down: Weight, activation: Activation) -> Tensor:
        """down(act(gate(x)) * up(x)) (SwiGLU / GeGLU, Shazeer 2020). `gate_up` stacks gate above up."""
        ...

    def select_logit_rows(self, x: Tensor) -> Tensor:
        """The rows of `[n, hidden]` whose logits the step needs: `[m, hidden]`."""
        ...

    def logits(self, x: Tensor, head: Weight, softcap: float | None = None) -> Tensor:
        """`[m, hidden] -> [m, vocab]` float32."""
        ...
