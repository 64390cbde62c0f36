"""Every block format against the independent `gguf` package, bit for bit, and against blocks made by hand."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest

from ridgeline.facts.ggml import GgmlType
from ridgeline.runtime.weights.dequant import dequantize, scales_are_finite


def random_rows(kind: GgmlType, rows: int, blocks: int, seed: int) -> np.ndarray:
    """Random bytes whose float16 and float32 fields are finite numbers."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows, blocks * kind.type_size), dtype=np.uint8)
    if kind is GgmlType.F32:
        return rng.standard_normal((rows, blocks)).astype("<f4").view(np.uint8)
    if kind in (GgmlType.F16, GgmlType.BF16):
        data[:, 1::2] &= 0xBF
        return data
    view = data.reshape(rows, blocks, kind.type_size)
    for offset in (208,) if kind is GgmlType.Q6_K else (0, 2):
        if offset == 0 or kind not in (GgmlType.Q4_0, GgmlType.Q5_0, GgmlType.Q8_0):
            view[:, :, offset + 1] &= 0xBF
    return data


@pytest.mark.parametrize("kind", list(GgmlType), ids=lambda kind: kind.name)
def test_equals_the_independent_package(kind: GgmlType) -> None:
    data = random_rows(kind, 5, 6, int(kind))
    expected = gguf.dequantize(data, gguf.GGMLQuantizationType(int(kind)))
    values = dequantize(data, kind)
    assert values.dtype == np.float32
    assert values.shape == (5, 6 * kind.block_size)
    np.testing.assert_array_equal(values, expected.reshape(values.shape))


@pytest.mark.parametrize(
    "kind", [k for k in GgmlType if k.name.startswith(("F", "BF", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8"))]
)
def test_undoes_what_the_independent_package_quantised(kind: GgmlType) -> None:
    values = np.random.default_rng(3).standard_normal((4, 64)).astype(np.float32)
    stored = gguf.quantize(values, gguf.GGMLQuantizationType(int(kind)))
    back = dequantize(np.ascontiguousarray(stored).view(np.uint8).reshape(4, -1), kind)
    step = {"Q4_0": 0.3, "Q4_1": 0.3, "Q5_0": 0.15, "Q5_1": 0.15, "Q8_0": 0.02, "F16": 2e-3, "BF16": 1.6e-2}
    assert np.abs(back - values).max() <= step.get(kind.name, 0.0)


def test_q4_1_by_hand() -> None:
    block = struct.pack("<2e", 0.5, -1.0) + bytes(range(0x10, 0x20))
    values = dequantize(np.frombuffer(block, np.uint8)[None], GgmlType.Q4_1)[0]
    np.testing.assert_array_equal(values[:16], np.arange(16) * 0.5 - 1)
    np.testing.assert_array_equal(values[16:], np.full(16, -0.5))


def test_q5_0_by_hand() -> None:
    block = struct.pack("<eI", 2.0, 1 << 0 | 1 << 31) + bytes([0x31] * 16)
    values = dequantize(np.frombuffer(block, np.uint8)[None], GgmlType.Q5_0)[0]
    assert values[0] == 2 * (17 - 16) and values[1] == 2 * (1 - 16)
    assert values[31] == 2 * (19 - 16) and values[30] == 2 * (3 - 16)


def test_q6_k_by_hand() -> None:
    low, high, scales = bytes([0x21]) + bytes(127), bytes([0b11_10_01_00]) + bytes(63), bytes([1] * 16)
    block = low + high + scales + struct.pack("<e", 1.0)
    values = dequantize(np.frombuffer(block, np.uint8)[None], GgmlType.Q6_K)[0]
    assert values[0] == 1 - 32 and values[32] == 16 - 32
    assert values[64] == 2 + 32 - 32 and values[96] == 48 - 32


def test_q4_k_by_hand() -> None:
    scales = bytearray(12)
    scales[0], scales[4] = 3, 5
    scales[8] = 0x21
    scales[0] |= 0b01 << 6
    scales[4] |= 0b10 << 6
    block = struct.pack("<2e", 1.0, 1.0) + bytes(scales) + bytes([0x42] * 128)
    values = dequantize(np.frombuffer(block, np.uint8)[None], GgmlType.Q4_K)[0]
    assert values[0] == 3 * 2 - 5, "sub-block 0: scale 3, minimum 5"
    assert values[32] == 0, "sub-block 1: scale and minimum 0"
    assert values[4 * 32] == (1 | 0b01 << 4) * 2 - (2 | 0b10 << 4), "sub-block 4: top bits from bytes 0 and 4"


@pytest.mark.parametrize("kind", [kind for kind in GgmlType if kind.is_quantized], ids=lambda kind: kind.name)
def test_scales_that_are_not_numbers_are_seen(kind: GgmlType) -> None:
    data = random_rows(kind, 1, 4, 1).reshape(-1)
    assert scales_are_finite(data, kind)
    at = 2 * kind.type_size + (208 if kind is GgmlType.Q6_K else 0)
    for bad in (float("nan"), float("inf"), float("-inf")):
        data[at : at + 2] = np.frombuffer(struct.pack("<e", bad), np.uint8)
        assert not scales_are_finite(data, kind)


def test_rows_of_broken_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="whole Q8_0 blocks"):
        dequantize(np.zeros((2, 33), np.uint8), GgmlType.Q8_0)
