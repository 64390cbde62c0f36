"""What a model is, read from a Hugging Face `config.json` or a GGUF header: no tensors, no I/O here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding of one kind of layer (rotate-half convention).

    `scaling`: None, or one of
    `("linear", factor)` (positions divided by factor),
    `("llama3", factor, low_freq_factor, high_freq_factor, original_context)` (Llama 3.1's "rope_scaling").
    A GGUF may give the divisors themselves: `freq_factors`, `[rotary_dim / 2]`.
    """

    theta: float
    rotary_dim: int
    scaling: tuple[str | float, ...] | None = None
    freq_factors: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer's attention.

    `window` None sees everything, else the last `window` positions (itself included).
    """

    window: int | None
    rope: RopeSpec


@dataclass(frozen=True, slots=True)
class StoredMatrices:
    """Matrices that are stacked for one product, as a file stores them, in `count` layers (tables: 1).

    `types` are those of the parts in order, such as ("Q5_0", "Q5_0", "Q8_0") for q, k and v.
    """

    kind: Literal["qkv", "output", "gate_up", "down", "embedding", "head"]
    types: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The facts of a decoder-only transformer. Sizes are counts.

    `architecture` names the file in runtime/models.

    `rms_norm_offset`: 1.0 where the checkpoint stores w and the norm multiplies by 1 + w (Gemma's
    safetensors; GGUF has it added already), else 0.0.

    `stored`: the types of the matrices where a file has several (GGUF), else empty;
    `stored_quantization` is the type of most of the layers' values.
    """

    name: str
    architecture: Literal["llama", "qwen2", "qwen3", "gemma3"]
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rms_norm_eps: float
    layers: tuple[LayerSpec, ...]
    activation: Activation
    tied_embeddings: bool
    attention_scale: float
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    rms_norm_offset: float = 0.0
    attention_softcap: float | None = None
    final_softcap: float | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    stored_quantization: str = "unknown"
    stored: tuple[StoredMatrices, ...] = ()
