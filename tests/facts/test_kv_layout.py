"""KV layouts as data: groups, pages, bytes."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.facts.config_json import model_spec_from_config
from ridgeline.facts.formulas import (
    flops_per_token,
    held_matrices,
    kv_bytes_per_token,
    matrix_bytes,
    parameter_counts,
    weight_bytes,
)
from ridgeline.facts.kv_layout import kv_layout
from ridgeline.facts.model_spec import LayerSpec, ModelSpec, RopeSpec, StoredMatrices


def model(windows: list[int | None], **changes: object) -> ModelSpec:
    rope = RopeSpec(10_000.0, 8)
    spec = ModelSpec(
        name="m",
        architecture="llama",
        num_layers=len(windows),
        hidden_size=32,
        intermediate_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        vocab_size=100,
        context_length=4096,
        rms_norm_eps=1e-5,
        layers=tuple(LayerSpec(window, rope) for window in windows),
        activation="silu",
        tied_embeddings=True,
        attention_scale=8**-0.5,
    )
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


def test_all_full_layers_are_one_group() -> None:
    layout = kv_layout(model([None] * 5), 16, 2)
    assert [group.layers for group in layout.groups] == [(0, 1, 2, 3, 4)]
    assert layout.page_bytes == 16 * 5 * 2 * 2 * 8 * 2
    assert layout.bytes_per_token == kv_bytes_per_token(model([None] * 5), 2)
    assert layout.blocks_for(17) == 2 and layout.bytes_for(17) == 2 * layout.page_bytes


def test_scales_count() -> None:
    layout = kv_layout(model([None] * 5), 16, 1, scale_bytes=4)
    assert layout.page_bytes == 16 * 5 * 2 * 2 * (8 + 4)
    assert layout.bytes_per_token == 5 * 2 * 2 * (8 + 4)


def test_all_windows_are_one_group() -> None:
    layout = kv_layout(model([64] * 4), 16, 2)
    assert [(g.kind, g.window, len(g.layers)) for g in layout.groups] == [("window", 64, 4)]
    assert layout.bytes_per_token_beyond_windows == 0


def test_gemma_is_cut_into_groups_of_its_full_layers() -> None:
    layout = kv_layout(model(([512] * 5 + [None]) * 3), 16, 2)
    assert [group.kind for group in layout.groups] == ["full"] + ["window"] * 5
    assert layout.groups[0].layers == (5, 11, 17)
    assert layout.layers_per_page == 3 and layout.padded_layers == 0
    assert layout.place(11) == (0, 1) and layout.place(0) == (1, 0)


def test_last_group_is_padded_when_counts_do_not_divide() -> None:
    layout = kv_layout(model([512] * 7 + [None] * 3), 16, 2)
    assert [len(group.layers) for group in layout.groups] == [3, 3, 3, 1]
    assert layout.padded_layers == 2
    assert layout.page_bytes == 16 * 3 * layout.layer_bytes_per_token


@given(
    windows=st.lists(st.sampled_from([None, 64, 512]), min_size=1, max_size=40),
    block_size=st.sampled_from([1, 16, 48]),
    tokens=st.integers(1, 5_000),
    chunk=st.integers(1, 600),
)
def test_every_layer_has_one_place_and_more_tokens_never_need_less(
    windows: list[int | None], block_size: int, tokens: int, chunk: int
) -> None:
    layout = kv_layout(model(windows), block_size, 2)
    places = {layout.place(layer) for layer in range(len(windows))}
    assert len(places) == len(windows)
    assert all(slot < layout.layers_per_page for _, slot in places)
    for group in layout.groups:
        assert {windows[layer] for layer in group.layers} == {group.window}
    assert layout.blocks_for(tokens, chunk) <= layout.blocks_for(tokens + 1, chunk)
    assert layout.blocks_for(tokens, chunk) <= layout.blocks_for(tokens, chunk + 1)


@given(window=st.integers(1, 100), block=st.integers(1, 40), chunk=st.integers(1, 50), at=st.integers(0, 400))
def test_window_bound_covers_what_a_step_touches(window: int, block: int, chunk: int, at: int) -> None:
    layout = kv_layout(model([window]), block, 2)
    first = max(0, at - window + 1)
    touched = (at + chunk - 1) // block - first // block + 1
    assert touched <= layout.blocks_for(at + chunk, chunk)


def test_bad_sizes_are_refused() -> None:
    for block_size, width in ((0, 2), (16, 0)):
        with pytest.raises(ValueError, match="positive"):
            kv_layout(model([None]), block_size, width)


def test_stored_weights_are_held_in_the_widest_precision_of_each_stack() -> None:
    stored = (
        StoredMatrices("qkv", ("Q4_K", "Q4_K", "Q6_K"), 1),
        StoredMatrices("qkv", ("Q4_K", "Q4_K", "F16"), 1),
        StoredMatrices("down", ("Q4_0",), 2),
        StoredMatrices("embedding", ("Q8_0",), 1),
    )
    spec = dataclasses.replace(model([None, None]), stored=stored)
    held = held_matrices(spec, "stored")
    assert [(each.kind, each.precision, each.count) for each in held] == [
        ("qkv", "int8", 1),
        ("qkv", "bf16", 1),
        ("output", "bf16", 2),
        ("gate_up", "bf16", 2),
        ("down", "int4", 2),
        ("head", "int8", 1),
    ]
    assert sum(each.num_values for each in held) == parameter_counts(spec).total - 5 * 32
    assert weight_bytes(spec, "stored") < weight_bytes(spec, "bf16")


def test_formulas_by_hand() -> None:
    spec = model([None, None])
    counts = parameter_counts(spec)
    assert counts.attention == 2 * (32 * 32 + 2 * 16 * 32 + 32 * 32)
    assert counts.mlp == 2 * 3 * 32 * 64
    assert (counts.embedding, counts.head, counts.norms) == (3200, 0, 5 * 32)
    assert counts.total == counts.without_embedding + 3200
    assert weight_bytes(spec, "float32") == 4 * counts.total
    assert matrix_bytes(10, 64, "int8") == 640 + 10 * (2 * 2 + 4)
    assert matrix_bytes(10, 64, "int4") == 320 + 10 * (2 * 4 + 4)
    untied = model([None, None], tied_embeddings=False)
    assert parameter_counts(untied).total == counts.total + 3200
    attention = 4 * 4 * 8 * 10 * 2
    assert flops_per_token(spec, 10) == 2 * (counts.attention + counts.mlp + 3200) + attention
    assert flops_per_token(model([4, None]), 10) == flops_per_token(spec, 10) - 4 * 4 * 8 * 6


def test_published_parameter_counts() -> None:
    rope = RopeSpec(100_000.0, 64)
    smollm2 = model(
        [None] * 30,
        hidden_size=576,
        intermediate_size=1536,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        vocab_size=49_152,
        layers=(LayerSpec(None, rope),) * 30,
    )
    assert parameter_counts(smollm2).total == 134_515_008
    assert kv_bytes_per_token(smollm2, 2) == 23_040


def test_attention_bias_is_on_the_output_too_except_in_qwen2() -> None:
    config = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "attention_bias": True,
    }  # fmt: skip
    llama = parameter_counts(model_spec_from_config(config, "m"))
    qwen2 = parameter_counts(model_spec_from_config({**config, "model_type": "qwen2"}, "m"))
    assert llama.biases == 2 * (64 + 32)
    assert qwen2.biases == 2 * 64
