"""Counts of parameters, bytes and floating point operations that follow from a ModelSpec alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ridgeline.facts.model_spec import ModelSpec
from ridgeline.facts.precision import Precision, Weights, precision_for

GROUP = 32
"""Inputs of an output that share a grid, in int8 and int4."""
_VALUE_BYTES: dict[str, float] = {"float32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}
_GRID_BYTES: dict[str, int] = {"int8": 2, "int4": 4}
"""A group's grid: int8 a scale, int4 a scale and a minimum, of 16 bits relative to the row's float32."""
_ROW_BYTES = 4


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Numbers of parameters by where they are. A tied head counts once, as the embedding."""

    embedding: int
    head: int
    attention: int
    mlp: int
    norms: int
    biases: int

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.attention + self.mlp + self.norms + self.biases

    @property
    def without_embedding(self) -> int:
        """What the "non-embedding parameters" of model cards mean: layers and the final norm."""
        return self.attention + self.mlp + self.norms + self.biases


def matrices(spec: ModelSpec) -> tuple[tuple[str, int, int], ...]:
    """(kind, rows, columns) of one layer's matrices as they are multiplied: qkv, output, gate_up, down."""
    query = spec.num_heads * spec.head_dim
    key_value = 2 * spec.num_kv_heads * spec.head_dim
    return (
        ("qkv", query + key_value, spec.hidden_size),
        ("output", spec.hidden_size, query),
        ("gate_up", 2 * spec.intermediate_size, spec.hidden_size),
        ("down", spec.hidden_size, spec.intermediate_size),
    )


def parameter_counts(spec: ModelSpec) -> ParameterCounts:
    """Parameters of the whole model."""
    sizes = {kind: rows * columns for kind, rows, columns in matrices(spec)}
    norms_per_layer = (4 if spec.post_norms else 2) * spec.hidden_size
    norms_per_layer += 2 * spec.head_dim if spec.qk_norm else 0
    bias_per_layer = 0
    if spec.attention_bias:
        bias_per_layer = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        bias_per_layer += 0 if spec.architecture == "qwen2" else spec.hidden_size
    bias_per_layer += 2 * spec.intermediate_size + spec.hidden_size if spec.mlp_bias else 0
    table = spec.vocab_size * spec.hidden_size
    return ParameterCounts(
        embedding=table,
        head=0 if spec.tied_embeddings else table,
        attention=spec.num_layers * (sizes["qkv"] + sizes["output"]),
        mlp=spec.num_layers * (sizes["gate_up"] + sizes["down"]),
        norms=spec.num_layers * norms_per_layer + spec.hidden_size,
        biases=spec.num_layers * bias_per_layer,
    )


def matrix_bytes(rows: int, columns: int, precision: Precision) -> int:
    """Bytes of one matrix: its values; int8 and int4 have a grid a group of 32 columns and a scale a row."""
    values = int(rows * columns * _VALUE_BYTES[precision])
    if precision not in _GRID_BYTES:
        return values
    return values + rows * (-(-columns // GROUP) * _GRID_BYTES[precision] + _ROW_BYTES)


@dataclass(frozen=True, slots=True)
class HeldMatrices:
    """`count` matrices of one kind and size in one precision. `kind` as in `matrices`, or embedding or head.

    A tied table serves as both and is the head.
    """

    kind: str
    rows: int
    columns: int
    precision: Precision
    count: int

    @property
    def num_bytes(self) -> int:
        return self.count * matrix_bytes(self.rows, self.columns, self.precision)

    @property
    def num_values(self) -> int:
        return self.count * self.rows * self.columns


def held_matrices(
    spec: ModelSpec, weights: Weights, head_weights: Weights | None = None
) -> tuple[HeldMatrices, ...]:
    """All matrices of the model as they are held: layers in `weights`, tables in `head_weights`."""
    head_weights = head_weights or weights
    held: list[HeldMatrices] = []
    for kind, rows, columns in matrices(spec):
        for precision, count in _precisions(spec, kind, weights, spec.num_layers):
            held.append(HeldMatrices(kind, rows, columns, precision, count))
    for kind in ("head",) if spec.tied_embeddings else ("embedding", "head"):
        stored = "embedding" if spec.tied_embeddings else kind
        for precision, _ in _precisions(spec, stored, head_weights, 1):
            held.append(HeldMatrices(kind, spec.vocab_size, spec.hidden_size, precision, 1))
    return tuple(held)


def _precisions(spec: ModelSpec, kind: str, weights: Weights, count: int) -> list[tuple[Precision, int]]:
    """The precisions of `count` matrices of a kind, and how many have each."""
    if weights != "stored":
        return [(weights, count)]
    counts: Counter[Precision] = Counter()
    for stored in spec.stored:
        if stored.kind == kind:
            counts[precision_for(stored.types)] += stored.count
    return list(counts.items()) or [("bf16", count)]


def weight_bytes(spec: ModelSpec, weights: Weights, head_weights: Weights | None = None) -> int:
    """Bytes of all weights, the layers' matrices in `weights`, head (tied or not) and embedding in the other.

    Norms and biases are float32. A tied table is held once.
    """
    counts = parameter_counts(spec)
    held = held_matrices(spec, weights, head_weights)
    return sum(each.num_bytes for each in held) + 4 * (counts.norms + counts.biases)


def kv_bytes_per_token(spec: ModelSpec, bytes_per_element: int) -> int:
    """K and V of one token in every layer (before any window has slid), without page padding."""
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * bytes_per_element


def flops_per_token(spec: ModelSpec, context_tokens: int = 0) -> int:
    """Multiply-adds times two of one token's forward pass at a context of `context_tokens`, head included.

    Matrices 2 x parameters; attention 4 x heads x head_dim x visible positions a layer (QK^T and PV).
    """
    counts = parameter_counts(spec)
    dense = 2 * (counts.attention + counts.mlp + spec.vocab_size * spec.hidden_size)
    visible = sum(
        context_tokens if layer.window is None else min(context_tokens, layer.window) for layer in spec.layers
    )
    return dense + 4 * spec.num_heads * spec.head_dim * visible
