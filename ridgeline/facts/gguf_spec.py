"""ModelSpec from a GGUF header.

Where GGUF leaves a fact out, the value is the one that llama.cpp's loader fills in for the
architecture (named at each place). Norm weights in GGUF already hold Gemma's 1 + w.
"""

from __future__ import annotations

import math
from collections import Counter
from math import prod
from typing import Any, Literal, cast

from ridgeline.facts.checked import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, Checked
from ridgeline.facts.errors import UnsupportedFeature
from ridgeline.facts.gguf import GgufArray, GgufHeader
from ridgeline.facts.model_spec import LayerSpec, ModelSpec, RopeSpec, StoredMatrices

Architecture = Literal["llama", "qwen2", "qwen3", "gemma3"]
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
GEMMA3_WINDOW_THETA = 10_000.0
GEMMA3_PATTERN = 6
"""Every sixth Gemma 3 layer is full (Gemma 3 report, sec. 2)."""
GEMMA3_27B_LAYERS = 62
StackKind = Literal["qkv", "output", "gate_up", "down"]
STACKS: tuple[tuple[StackKind, tuple[str, ...]], ...] = (
    ("qkv", ("attn_q", "attn_k", "attn_v")),
    ("output", ("attn_output",)),
    ("gate_up", ("ffn_gate", "ffn_up")),
    ("down", ("ffn_down",)),
)
"""The products of a layer and the tensors that each stacks."""


def model_spec_from_gguf(header: GgufHeader, name: str) -> ModelSpec:
    """The facts of the model in a GGUF file.

    Raises MalformedFile for a value that cannot be, UnsupportedFeature for one that is not handled.
    """
    top = Checked(header.metadata, name)
    architecture = top.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedFeature(
            "general.architecture", architecture, f"known are {', '.join(ARCHITECTURES)}"
        )
    facts = Checked(_uniform(header.metadata, architecture), name, f"{architecture}.")
    _refuse_unsupported(facts)
    num_layers = facts.integer("block_count", 1, MAX_LAYERS)
    hidden = facts.integer("embedding_length", 1, MAX_WIDTH)
    num_heads = facts.integer("attention.head_count", 1, MAX_HEADS)
    num_kv_heads = facts.integer("attention.head_count_kv", 1, MAX_HEADS, num_heads)
    head_dim = _head_dim(facts, hidden, num_heads)
    if num_heads % num_kv_heads:
        raise facts.refuse("attention.head_count_kv", f"{num_kv_heads} does not divide {num_heads} heads")
    vocab_size = _vocab_size(header, top, hidden)
    gemma = architecture == "gemma3"
    return ModelSpec(
        name=name,
        architecture=cast(Architecture, architecture),
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=facts.integer("feed_forward_length", 1, MAX_WIDTH),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        context_length=facts.integer("context_length", 1, MAX_CONTEXT),
        rms_norm_eps=facts.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
        layers=_layers(header, facts, num_layers, head_dim),
        activation="gelu_tanh" if gemma else "silu",
        tied_embeddings=header.tensor("output.weight") is None,
        attention_scale=_attention_scale(facts, num_layers, hidden, num_heads, head_dim),
        attention_bias=header.tensor("blk.0.attn_q.bias") is not None,
        qk_norm=architecture in ("qwen3", "gemma3"),
        post_norms=gemma,
        embedding_scale=math.sqrt(hidden) if gemma else 1.0,
        attention_softcap=facts.number("attn_logit_softcapping", 1e-3, 1e6, None),
        final_softcap=facts.number("final_logit_softcapping", 1e-3, 1e6, None),
        bos_token_id=next(iter(top.token_ids("tokenizer.ggml.bos_token_id", vocab_size)), None),
        eos_token_ids=_eos_token_ids(top, vocab_size),
        stored_quantization=_stored_quantization(header),
        stored=_stored_matrices(header, num_layers),
    )


def _uniform(metadata: dict[str, Any], architecture: str) -> dict[str, Any]:
    """The architecture's values, per-layer arrays of one repeated number replaced by that number."""
    values = {}
    for key, value in metadata.items():
        if key.startswith(f"{architecture}.") and isinstance(value, GgufArray):
            if key.endswith("sliding_window_pattern"):
                value = value.items()
            elif len(value) <= MAX_LAYERS and len(set(value)) == 1:
                value = value[0]
            else:
                raise UnsupportedFeature(key, f"{len(value)} values", "layers of different sizes")
        values[key] = value
    return values


def _refuse_unsupported(facts: Checked) -> None:
    for key in ("expert_count", "expert_used_count", "nextn_predict_layers"):
        if facts.get(key):
            raise UnsupportedFeature(facts.prefix + key, facts.get(key), "mixture of experts and extra heads")
    for key in ("logit_scale", "residual_scale", "embedding_scale", "attention.scale", "attention.clamp_kqv"):
        if facts.get(key):
            raise UnsupportedFeature(facts.prefix + key, facts.get(key))
    if facts.prefix != "gemma3.":
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if facts.get(key):
                raise UnsupportedFeature(facts.prefix + key, facts.get(key), "soft caps are read of gemma3")
    if facts.get("attention.causal") is False:
        raise UnsupportedFeature(facts.prefix + "attention.causal", False, "an encoder")


def _head_dim(facts: Checked, hidden: int, num_heads: int) -> int:
    head_dim = int(facts.integer("attention.key_length", 2, 1_024, hidden // num_heads))
    if head_dim < 2 or head_dim % 2:
        raise facts.refuse("attention.key_length", f"a head of {head_dim} cannot be rotated")
    for key in ("attention.value_length", "rope.dimension_count"):
        if facts.integer(key, 0, 1 << 16, head_dim) != head_dim:
            message = f"differs from the head's {head_dim}"
            raise UnsupportedFeature(facts.prefix + key, facts.get(key), message)
    return head_dim


def _vocab_size(header: GgufHeader, top: Checked, hidden: int) -> int:
    table = header.tensor("token_embd.weight")
    if table is None:
        raise top.refuse("token_embd.weight", "tensor is missing")
    if len(table.shape) != 2 or table.shape[1] != hidden or table.shape[0] > MAX_VOCABULARY:
        raise top.refuse("token_embd.weight", f"shape {table.shape} is not (vocabulary, {hidden})")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, GgufArray) and len(tokens) > table.shape[0]:
        message = f"{len(tokens)} tokens, but the embedding has {table.shape[0]} rows"
        raise top.refuse("tokenizer.ggml.tokens", message)
    return table.shape[0]


def _layers(header: GgufHeader, facts: Checked, num_layers: int, head_dim: int) -> tuple[LayerSpec, ...]:
    gemma = facts.prefix == "gemma3."
    theta = facts.number("rope.freq_base", 1.0, 1e12, 1e6 if gemma else 10_000.0)
    full = RopeSpec(theta, head_dim, _rope_scaling(facts), _freq_factors(header, facts, head_dim))
    window = facts.integer("attention.sliding_window", 0, MAX_CONTEXT, 0) or None
    if not gemma:
        return (LayerSpec(window, full),) * num_layers
    if window is None:
        raise facts.refuse("attention.sliding_window", "is missing")
    local = RopeSpec(facts.number("rope.freq_base_swa", 1.0, 1e12, GEMMA3_WINDOW_THETA), head_dim)
    is_window = _window_pattern(facts, num_layers)
    return tuple(LayerSpec(window, local) if windowed else LayerSpec(None, full) for windowed in is_window)


def _window_pattern(facts: Checked, num_layers: int) -> list[bool]:
    """Which layers have a window: an array of flags, or the period (its last layer is full)."""
    pattern = facts.get("attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        if len(pattern) != num_layers:
            message = f"{len(pattern)} entries for {num_layers} layers"
            raise facts.refuse("attention.sliding_window_pattern", message)
        return [bool(flag) for flag in pattern]
    period = facts.integer("attention.sliding_window_pattern", 1, MAX_LAYERS, GEMMA3_PATTERN)
    return [(layer + 1) % period != 0 for layer in range(num_layers)]


def _rope_scaling(facts: Checked) -> tuple[str | float, ...] | None:
    kind = facts.text("rope.scaling.type", None)
    factor = facts.number("rope.scaling.factor", 0.0, 1e6, None)
    if factor is None:
        factor = facts.number("rope.scale_linear", 0.0, 1e6, None)
    if kind not in (None, "none", "linear"):
        raise UnsupportedFeature(f"{facts.prefix}rope.scaling.type", kind, "known are none, linear")
    if kind == "none" or not factor or factor == 1.0:
        return None
    return ("linear", factor)


def _freq_factors(header: GgufHeader, facts: Checked, head_dim: int) -> tuple[float, ...] | None:
    tensor = header.tensor("rope_freqs.weight")
    if tensor is None:
        return None
    if prod(tensor.shape) != head_dim // 2:
        raise facts.refuse("rope_freqs.weight", f"shape {tensor.shape} is not ({head_dim // 2},)")
    factors = header.floats(tensor)
    if not all(math.isfinite(factor) and factor > 0 for factor in factors):
        raise facts.refuse("rope_freqs.weight", "holds a factor that is not a positive number")
    return None if set(factors) == {1.0} else factors


def _attention_scale(facts: Checked, num_layers: int, hidden: int, num_heads: int, head_dim: int) -> float:
    """1 / sqrt(head_dim); Gemma 3 27B alone has query_pre_attn_scalar = hidden / heads, unsaid in GGUF."""
    if facts.prefix == "gemma3." and num_layers == GEMMA3_27B_LAYERS:
        return 1.0 / math.sqrt(hidden / num_heads)
    return 1.0 / math.sqrt(head_dim)


def _eos_token_ids(top: Checked, vocab_size: int) -> tuple[int, ...]:
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = [token for key in keys for token in top.token_ids(f"tokenizer.ggml.{key}", vocab_size)]
    return tuple(dict.fromkeys(ids))


def _stored_quantization(header: GgufHeader) -> str:
    """The type that most values of the layers' matrices have."""
    counts: Counter[str] = Counter()
    for tensor in header.tensors:
        if len(tensor.shape) == 2 and tensor.name.startswith("blk."):
            counts[tensor.type.name] += prod(tensor.shape)
    return counts.most_common(1)[0][0] if counts else "unknown"


def _stored_matrices(header: GgufHeader, num_layers: int) -> tuple[StoredMatrices, ...]:
    """How many layers store each product's matrices in which types, and the tables."""
    type_of = {tensor.name: tensor.type.name for tensor in header.tensors}
    found: list[StoredMatrices] = []
    for kind, names in STACKS:
        stacks = ([f"blk.{layer}.{name}.weight" for name in names] for layer in range(num_layers))
        counts = Counter(tuple(type_of[name] for name in stack if name in type_of) for stack in stacks)
        found += [StoredMatrices(kind, types, count) for types, count in counts.items() if types]
    found.append(StoredMatrices("embedding", (type_of["token_embd.weight"],), 1))
    if "output.weight" in type_of:
        found.append(StoredMatrices("head", (type_of["output.weight"],), 1))
    return tuple(found)
