"""The arithmetic of the roofline, by hand on small shapes."""

from __future__ import annotations

import pytest

from ridgeline.cost.roofline import (
    OPERATIONS,
    BandwidthPoint,
    Ceilings,
    Operation,
    PeakPoint,
    attainable,
    floors,
    step_operations,
    unit_for,
    visible_pairs,
)
from ridgeline.facts.formulas import flops_per_token, weight_bytes
from ridgeline.facts.model_spec import LayerSpec, ModelSpec, RopeSpec

ROPE = RopeSpec(10_000.0, 16)


def model(windows: tuple[int | None, ...] = (None, None)) -> ModelSpec:
    return ModelSpec(
        name="m",
        architecture="llama",
        num_layers=len(windows),
        hidden_size=64,
        intermediate_size=128,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=1000,
        context_length=4096,
        rms_norm_eps=1e-5,
        layers=tuple(LayerSpec(window, ROPE) for window in windows),
        activation="silu",
        tied_embeddings=True,
        attention_scale=0.25,
    )


def operations(phase: str, spec: ModelSpec, **kwargs) -> dict[str, Operation]:
    options = {"batch": 1, "context": 99, "weights": "int8", "head_weights": "bf16", **kwargs}
    units = ("float32", "vnni_int8", "amx_int8", "amx_bf16")
    found = step_operations(spec, phase, kv_bytes_per_element=2, units=units, **options)
    return {each.name: each for each in found}


def ceilings() -> Ceilings:
    bandwidth = (BandwidthPoint(1, 1_000, 100.0), BandwidthPoint(1, 1_000_000, 10.0))
    peaks = (PeakPoint(1, "float32", 50.0), PeakPoint(1, "amx_int8", 1_000.0))
    return Ceilings("amx", bandwidth, peaks)


def test_decode_counts_agree_with_the_formulas() -> None:
    spec = model()
    found = operations("decode", spec)
    assert tuple(found) == OPERATIONS
    # The new token sees itself: a context of 99 before it makes 100 positions.
    assert sum(each.operations for each in found.values()) == flops_per_token(spec, 100)
    products = sum(each.num_bytes for name, each in found.items() if name != "attention")
    norms = 4 * (2 * 2 * 64 + 64)
    assert products == weight_bytes(spec, "int8", "bf16") - norms
    assert found["attention"].num_bytes == 2 * 100 * 2 * 2 * 16 * 2
    assert found["qkv"].intensity == pytest.approx(2 / (1 + 2 / 32 + 4 / 64)), (
        "int8 with its grids and scales"
    )


def test_batch_multiplies_work_not_weights() -> None:
    one, eight = operations("decode", model()), operations("decode", model(), batch=8)
    for name in OPERATIONS:
        assert eight[name].operations == 8 * one[name].operations
        assert eight[name].num_bytes == (8 if name == "attention" else 1) * one[name].num_bytes


def test_prefill_reads_weights_once_and_makes_logits_of_the_last() -> None:
    found = operations("prefill", model(), context=64)
    decode = operations("decode", model())
    assert found["down"].num_bytes == decode["down"].num_bytes
    assert found["down"].operations == 64 * decode["down"].operations
    assert found["head"].operations == decode["head"].operations


@pytest.mark.parametrize("context", [1, 5, 16, 17, 40])
@pytest.mark.parametrize("window", [None, 1, 16, 40, 100])
def test_visible_pairs_are_those_counted_one_by_one(context: int, window: int | None) -> None:
    limit = window or 10**9
    assert visible_pairs("prefill", context, window) == sum(min(i + 1, limit) for i in range(context))
    assert visible_pairs("decode", context, window) == min(context + 1, limit)


def test_windows_bound_what_decode_reads() -> None:
    full, mixed = operations("decode", model()), operations("decode", model((None, 10)))
    assert mixed["attention"].num_bytes * 200 == full["attention"].num_bytes * 110


def test_bandwidth_is_that_of_the_smallest_set_that_holds_the_step() -> None:
    machine = ceilings()
    assert machine.bytes_per_s(1, 1_000) == 100.0
    assert machine.bytes_per_s(1, 1_001) == 10.0
    assert machine.bytes_per_s(1, 10**9) == 10.0
    with pytest.raises(KeyError, match="2 threads"):
        machine.bytes_per_s(2, 1)
    with pytest.raises(KeyError, match="vnni_int8"):
        machine.operations_per_s(1, "vnni_int8")
    assert machine.units(1) == ("float32", "amx_int8")


def test_the_floor_is_the_higher_of_the_two() -> None:
    slow = Operation("qkv", "decode", 500, 100, "amx_int8")
    busy = Operation("down", "prefill", 500, 10_000, "amx_int8")
    memory, compute = floors((slow, busy), ceilings(), 1)
    assert (memory.bound, memory.seconds) == ("memory", 5.0)
    assert (compute.bound, compute.seconds) == ("compute", 10.0)


def test_units() -> None:
    assert unit_for("int4", ("float32", "vnni_int8")) == "vnni_int8"
    assert unit_for("int8", ("float32", "vnni_int8", "amx_int8")) == "amx_int8"
    assert unit_for("bf16", ("float32", "vnni_int8")) == "float32"
    assert unit_for("float32", ("float32", "amx_bf16")) == "float32"


def test_attainable_meets_at_the_ridge() -> None:
    assert attainable(2, 10, 100) == 20
    assert attainable(10, 10, 100) == 100
    assert attainable(1_000, 10, 100) == 100
