"""The measuring kernels run on every tier and say plausible things; their arguments are checked."""

from __future__ import annotations

import pytest

native = pytest.importorskip("ridgeline.runtime.native._native")

from ridgeline.runtime.native.measure import by_operation, measure_ceilings  # noqa: E402

TIERS = native.available_tiers()


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_ceilings_of_every_tier(tier: str, num_threads: int) -> None:
    reports: list[float] = []
    found = measure_ceilings(
        (num_threads,),
        (1 << 14, 1 << 20),
        repeats=1,
        tier=tier,
        progress=lambda stage, share: reports.append(share),
    )
    assert found.tier == tier
    assert [point.working_set_bytes for point in found.bandwidth] == [1 << 14, 1 << 20]
    assert all(1e7 < point.bytes_per_s < 1e14 for point in found.bandwidth)
    units = found.units(num_threads)
    assert units[0] == "float32"
    assert ("amx_int8" in units) == (tier == "amx")
    assert ("vnni_int8" in units) == (tier in ("avx512", "amx"))
    assert all(1e7 < point.operations_per_s < 1e15 for point in found.peaks)
    assert reports


def test_arguments_are_checked() -> None:
    probe = native.Probe(native.ThreadPool(1), 1 << 14)
    with pytest.raises(ValueError, match="num_bytes"):
        probe.read(1 << 15, 1, False)
    with pytest.raises(ValueError, match="rounds"):
        probe.read(1 << 14, 0, False)
    with pytest.raises(ValueError, match="unit"):
        probe.peak("float8", 1)
    with pytest.raises(ValueError, match="num_bytes"):
        native.Probe(native.ThreadPool(1), 1)
    with pytest.raises(ValueError, match="amx_int8"):
        native.Probe(native.ThreadPool(1, "portable"), 1 << 14, "portable").peak("amx_int8", 1)


def test_ops_of_a_tape_by_operation() -> None:
    layer = [("quantize", 1), ("linear", 10), ("rope", 2), ("kv_write", 3), ("attention", 20)]
    layer += [
        ("quantize", 4),
        ("linear", 30),
        ("quantize", 5),
        ("linear", 40),
        ("quantize", 6),
        ("linear", 50),
    ]
    spent = by_operation([("embed", 7), *layer, *layer, ("quantize", 8), ("logits", 60)], 2)
    nanoseconds = {name: round(1e9 * seconds) for name, seconds in spent.items()}
    assert nanoseconds == {
        "qkv": 22, "attention": 46, "output": 68, "gate_up": 90, "down": 112, "head": 68, "other": 11,
    }  # fmt: skip
    with pytest.raises(ValueError, match="products"):
        by_operation(layer, 2)
