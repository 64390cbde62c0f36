"""The memory ledger: what an engine will take, before it takes it, each entry with its formula.

Contract 8: more context, more sequences, more blocks or bigger steps never need fewer bytes. Every
entry is a sum and product of counts, so that holds by construction; tests/contracts checks it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from ridgeline.facts.formulas import held_matrices, matrix_bytes, parameter_counts, weight_bytes
from ridgeline.facts.kv_layout import KvLayout
from ridgeline.facts.model_spec import ModelSpec
from ridgeline.facts.precision import Weights

MATRIX_SLACK_BYTES = 32 << 10
PAGE_BYTES = 2 << 20
RUNTIME_BYTES = 160 << 20
"""Interpreter, libraries, tokenizer and server: measured resident size without weights, rounded up."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One use of memory: `formula` is the sum in words and figures."""

    name: str
    num_bytes: int
    formula: str


@dataclass(frozen=True, slots=True)
class MemoryLedger:
    """All uses of memory of one engine, and what the machine has for it (None: unknown)."""

    entries: tuple[LedgerEntry, ...]
    available_bytes: int | None = None

    @property
    def total_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.entries)

    @property
    def fits(self) -> bool:
        return self.available_bytes is None or self.total_bytes <= self.available_bytes

    @property
    def largest(self) -> LedgerEntry:
        return max(self.entries, key=lambda entry: entry.num_bytes)

    def entry(self, name: str) -> LedgerEntry:
        """The entry of that name. Raises KeyError."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(name)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        entries = [{"name": e.name, "bytes": e.num_bytes, "formula": e.formula} for e in self.entries]
        return {"entries": entries, "total_bytes": self.total_bytes, "available_bytes": self.available_bytes}

    def as_text(self) -> str:
        """A table of one line an entry."""
        lines = [f"{e.name:<12} {human_bytes(e.num_bytes):>10}  {e.formula}" for e in self.entries]
        available = (
            "" if self.available_bytes is None else f"  of {human_bytes(self.available_bytes)} available"
        )
        lines.append(f"{'total':<12} {human_bytes(self.total_bytes):>10}{available}")
        return "\n".join(lines)


def memory_ledger(
    spec: ModelSpec,
    layout: KvLayout,
    *,
    num_blocks: int,
    weights: Weights,
    head_weights: Weights,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_model_len: int,
    available_bytes: int | None = None,
) -> MemoryLedger:
    """The ledger of an engine with these sizes (tokens, sequences, blocks)."""
    return MemoryLedger(
        (
            _weights(spec, weights, head_weights),
            _kv_cache(layout, num_blocks),
            _activations(spec, max_num_batched_tokens),
            _logits(spec, max_num_seqs),
            _block_tables(layout, max_num_seqs, max_model_len),
            _rope_tables(spec, max_model_len),
            LedgerEntry("runtime", RUNTIME_BYTES, "interpreter, libraries, tokenizer, server"),
        ),
        available_bytes,
    )


def _weights(spec: ModelSpec, weights: Weights, head: Weights) -> LedgerEntry:
    counts = parameter_counts(spec)
    values: Counter[tuple[str, str]] = Counter()
    for held in held_matrices(spec, weights, head):
        place = "embedding and head" if held.kind in ("embedding", "head") else "layers"
        values[place, held.precision] += held.num_values
    terms = [f"{count / 1e6:.1f}M in {place} as {kind}" for (place, kind), count in values.items()]
    terms += ["scales", f"{(counts.norms + counts.biases) / 1e3:.1f}k norms and biases as float32"]
    rounding = _rounding(spec, weights, head)
    if rounding:
        terms.append(f"{human_bytes(rounding)} to fill tiles and 2 MiB pages")
    return LedgerEntry("weights", weight_bytes(spec, weights, head) + rounding, " + ".join(terms))


def _rounding(spec: ModelSpec, weights: Weights, head: Weights) -> int:
    """What packed matrices take beyond their values: slack each, and whole pages from 2 MiB on.

    The native backend packs everything but float32, which only the reference holds, unpacked.
    """
    return sum(
        held.count * _slack(matrix_bytes(held.rows, held.columns, held.precision))
        for held in held_matrices(spec, weights, head)
        if held.precision != "float32"
    )


def _slack(num_bytes: int) -> int:
    packed = num_bytes + MATRIX_SLACK_BYTES
    if packed >= PAGE_BYTES:
        packed = -(-packed // PAGE_BYTES) * PAGE_BYTES
    return packed - num_bytes


def _kv_cache(layout: KvLayout, num_blocks: int) -> LedgerEntry:
    head = f"{layout.head_dim} x {layout.bytes_per_element} B"
    if layout.scale_bytes:
        head = f"({head} + {layout.scale_bytes} B scale)"
    formula = (
        f"{num_blocks} blocks x {layout.block_size} tokens x {layout.layers_per_page} layers x 2 (K, V) x "
        f"{layout.num_kv_heads} KV heads x {head}"
    )
    return LedgerEntry("kv_cache", num_blocks * layout.page_bytes, formula)


def _activations(spec: ModelSpec, max_num_batched_tokens: int) -> LedgerEntry:
    heads = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    width = 4 * spec.hidden_size + 2 * heads + 3 * spec.intermediate_size
    formula = (
        f"{max_num_batched_tokens} tokens x (4 hidden {spec.hidden_size} + 2 qkv {heads} + "
        f"3 mlp {spec.intermediate_size}) x 4 B"
    )
    return LedgerEntry("activations", max_num_batched_tokens * width * 4, formula)


def _logits(spec: ModelSpec, max_num_seqs: int) -> LedgerEntry:
    formula = (
        f"{max_num_seqs} sequences x vocabulary {spec.vocab_size} x 4 B x 3 (the sampler makes two copies)"
    )
    return LedgerEntry("logits", max_num_seqs * spec.vocab_size * 4 * 3, formula)


def _block_tables(layout: KvLayout, max_num_seqs: int, max_model_len: int) -> LedgerEntry:
    blocks = -(-max_model_len // layout.block_size)
    formula = f"{max_num_seqs} sequences x {len(layout.groups)} groups x {blocks} blocks x 4 B"
    return LedgerEntry("block_tables", max_num_seqs * len(layout.groups) * blocks * 4, formula)


def _rope_tables(spec: ModelSpec, max_model_len: int) -> LedgerEntry:
    kinds = {layer.rope for layer in spec.layers}
    width = sum(rope.rotary_dim for rope in kinds)
    formula = f"{max_model_len} positions x {width} (cos and sin of {len(kinds)} kinds of layer) x 4 B"
    return LedgerEntry("rope_tables", max_model_len * width * 4, formula)


def human_bytes(num_bytes: float) -> str:
    """Binary units with one decimal: 98362432 is "93.8 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
