"""Contract 8: more context, sequences, blocks or bigger steps never need less memory."""

from __future__ import annotations

import dataclasses

from hypothesis import assume, given
from hypothesis import strategies as st

from ridgeline.cost.memory import memory_ledger
from ridgeline.engine.errors import ConfigError
from ridgeline.engine.hardware_probe import NativeProbe
from ridgeline.engine.options import EngineOptions
from ridgeline.engine.resolve import ledger_of, resolve
from ridgeline.facts.hardware import HardwareSpec
from ridgeline.facts.kv_layout import kv_layout
from ridgeline.facts.model_spec import LayerSpec, ModelSpec, RopeSpec

ROPE = RopeSpec(10_000.0, 32)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    windows = draw(st.lists(st.sampled_from([None, 128, 512]), min_size=1, max_size=12))
    kv_heads = draw(st.integers(1, 4))
    return ModelSpec(
        name="m",
        architecture="llama",
        num_layers=len(windows),
        hidden_size=draw(st.sampled_from([64, 96, 576])),
        intermediate_size=draw(st.sampled_from([128, 1_536])),
        num_heads=kv_heads * draw(st.integers(1, 4)),
        num_kv_heads=kv_heads,
        head_dim=32,
        vocab_size=draw(st.integers(10, 50_000)),
        context_length=draw(st.integers(64, 40_000)),
        rms_norm_eps=1e-5,
        layers=tuple(LayerSpec(window, ROPE) for window in windows),
        activation="silu",
        tied_embeddings=draw(st.booleans()),
        attention_scale=1.0,
    )


SIZES = {
    "num_blocks": st.integers(1, 100_000),
    "max_num_seqs": st.integers(1, 1_000),
    "max_num_batched_tokens": st.integers(1, 10_000),
    "max_model_len": st.integers(1, 100_000),
}


@given(
    spec=specs(),
    sizes=st.fixed_dictionaries(SIZES),
    field=st.sampled_from(sorted(SIZES)),
    more=st.integers(1, 10_000),
)
def test_ledger_is_monotone_in_every_size(
    spec: ModelSpec, sizes: dict[str, int], field: str, more: int
) -> None:
    def entries(sizes: dict[str, int]) -> list[int]:
        layout = kv_layout(spec, 16, 2)
        ledger = memory_ledger(spec, layout, weights="int8", head_weights="int8", **sizes)
        return [entry.num_bytes for entry in ledger.entries]

    smaller, larger = entries(sizes), entries({**sizes, field: sizes[field] + more})
    assert all(a <= b for a, b in zip(smaller, larger, strict=True))


@given(
    spec=specs(),
    memory_bytes=st.integers(1 << 30, 1 << 40),
    length=st.integers(1, 20_000),
    sequences=st.integers(1, 2_000),
    more_length=st.integers(0, 20_000),
    more_sequences=st.integers(0, 2_000),
)
def test_resolved_totals_are_monotone_in_context_and_sequences(
    spec: ModelSpec, memory_bytes: int, length: int, sequences: int, more_length: int, more_sequences: int
) -> None:
    spec = dataclasses.replace(spec, context_length=40_000)
    hardware = HardwareSpec("test", 2, memory_bytes)

    def total(length: int, sequences: int) -> int:
        options = EngineOptions(max_model_len=length, max_num_seqs=sequences)
        config, _ = resolve(options, spec, hardware, native=NativeProbe(True, "test"), environment={})
        return ledger_of(spec, config, hardware).total_bytes

    try:
        smaller, larger = total(length, sequences), total(length + more_length, sequences + more_sequences)
    except ConfigError:
        assume(False)
    assert smaller <= larger <= memory_bytes
