"""The C++ dequantisation of every ggml type against the gguf package, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from ridgeline.facts.ggml import GgmlType

native = pytest.importorskip("ridgeline.runtime.native._native")
gguf = pytest.importorskip("gguf")


def random_blocks(kind: GgmlType, num_blocks: int) -> np.ndarray:
    """Random bytes with sane scales: `[num_blocks, type_size]` uint8."""
    rng = np.random.default_rng(int(kind))
    blocks = rng.integers(0, 256, (num_blocks, kind.type_size), dtype=np.uint8)
    scales = rng.standard_normal((num_blocks, 2)).astype(np.float16).view(np.uint8).reshape(num_blocks, 4)
    if kind is GgmlType.Q6_K:
        blocks[:, -2:] = scales[:, :2]
    elif kind in (GgmlType.Q4_0, GgmlType.Q5_0, GgmlType.Q8_0):
        blocks[:, :2] = scales[:, :2]
    elif kind.block_size > 1:
        blocks[:, :4] = scales
    return blocks


@pytest.mark.parametrize("tier", native.available_tiers())
@pytest.mark.parametrize("kind", list(GgmlType), ids=lambda kind: kind.name)
def test_rows_equal_the_gguf_package(tier, kind):
    if kind.block_size == 1:
        values = np.random.default_rng(0).standard_normal(777).astype(np.float32)
        stored = gguf.quants.quantize(values, gguf.GGMLQuantizationType(int(kind)))
        blocks = stored.view(np.uint8).reshape(777, -1)
    else:
        blocks = random_blocks(kind, 9)
    expected = gguf.quants.dequantize(blocks.reshape(1, -1), gguf.GGMLQuantizationType(int(kind))).ravel()
    y = np.empty(len(blocks) * kind.block_size, np.float32)
    native.dequantize_row(blocks.ravel(), int(kind), y, tier=tier)
    assert np.array_equal(y, expected.astype(np.float32))


@pytest.mark.parametrize("tier", native.available_tiers())
def test_every_half_float(tier):
    halves = np.arange(65536, dtype=np.uint16)
    y = np.empty(65536, np.float32)
    native.dequantize_row(halves.view(np.uint8), int(GgmlType.F16), y, tier=tier)
    assert np.array_equal(y, halves.view(np.float16).astype(np.float32), equal_nan=True)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="ggml_type"):
        native.dequantize_row(np.zeros(18, np.uint8), 2, np.empty(31, np.float32))
    with pytest.raises(ValueError, match="ggml_type"):
        native.dequantize_row(np.zeros(18, np.uint8), 99, np.empty(32, np.float32))
    with pytest.raises(ValueError, match="row"):
        native.dequantize_row(np.zeros(17, np.uint8), 2, np.empty(32, np.float32))
