"""Blocks of ggml types to float32, vectorised over blocks: the readable definition of each format.

Each decoder takes `[num_blocks, type_size]` bytes and gives `[num_blocks, block_size]` float32. The
order of the float operations is ggml's, so results are bit-equal to its reference. Callers pass rows
in portions: nothing here ever holds a file.

Formats: ggml-common.h. In the 32-value types byte j holds value j in its low and value j + 16 in its
high nibble; in the K types the 32 bytes of a pair of sub-blocks hold the first in the low nibbles.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ridgeline.facts.ggml import GgmlType

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def dequantize(data: Bytes, kind: GgmlType) -> Floats:
    """Values of `[rows, row_bytes]` bytes: `[rows, row_bytes / type_size * block_size]` float32.

    Raises ValueError when the rows do not hold whole blocks.
    """
    rows, row_bytes = data.shape
    if row_bytes % kind.type_size:
        raise ValueError(
            f"rows of {row_bytes} bytes do not hold whole {kind.name} blocks of {kind.type_size}"
        )
    if kind is GgmlType.F32:
        return np.ascontiguousarray(data).view("<f4").astype(np.float32)
    if kind is GgmlType.F16:
        return np.ascontiguousarray(data).view("<f2").astype(np.float32)
    if kind is GgmlType.BF16:
        wide = np.ascontiguousarray(data).view("<u2").astype(np.uint32) << np.uint32(16)
        return wide.view(np.float32)
    blocks = np.ascontiguousarray(data).reshape(-1, kind.type_size)
    return _DECODERS[kind](blocks).reshape(rows, -1)


def scales_are_finite(data: Bytes, kind: GgmlType) -> bool:
    """Whether every float16 scale in the blocks of `data` (flat bytes) is a finite number."""
    offsets = _SCALE_OFFSETS.get(kind)
    if offsets is None:
        return True
    blocks = data.reshape(-1, kind.type_size)
    return all(bool(((blocks[:, offset + 1] & 0x7C) != 0x7C).all()) for offset in offsets)


_SCALE_OFFSETS: dict[GgmlType, tuple[int, ...]] = {
    GgmlType.Q4_0: (0,),
    GgmlType.Q4_1: (0, 2),
    GgmlType.Q5_0: (0,),
    GgmlType.Q5_1: (0, 2),
    GgmlType.Q8_0: (0,),
    GgmlType.Q4_K: (0, 2),
    GgmlType.Q5_K: (0, 2),
    GgmlType.Q6_K: (208,),
}
"""Where the float16 numbers of a block stand."""


def _half(blocks: Bytes, offset: int) -> Floats:
    """The float16 at a byte offset of every block: `[num_blocks, 1]` float32."""
    return np.ascontiguousarray(blocks[:, offset : offset + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """Low nibbles, then high ones: `[..., n] -> [..., 2 n]`."""
    return np.concatenate((packed & 0x0F, packed >> 4), axis=-1)


def _fifth_bits(packed: Bytes) -> Bytes:
    """Bit j of four little-endian bytes, as 0 or 16: `[num_blocks, 4] -> [num_blocks, 32]`."""
    return np.unpackbits(packed, axis=-1, bitorder="little") * np.uint8(16)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.int8) - 8).astype(np.float32)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    values = (_nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])).astype(np.int8) - 16
    return _half(blocks, 0) * values.astype(np.float32)


def _q5_1(blocks: Bytes) -> Floats:
    values = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks, 0) * values.astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _k_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight 6-bit scales and minimums of 12 bytes: two `[num_blocks, 8]`.

    Bytes 0-3 and 4-7 hold scales and minimums 0-3 in their low six bits; bytes 8-11 the low four bits
    of scales (low nibble) and minimums (high nibble) 4-7, whose top two bits are those of bytes 0-7.
    """
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate((low & 0x3F, (high & 0x0F) | ((low >> 6) << 4)), axis=1)
    minimums = np.concatenate((middle & 0x3F, (high >> 4) | ((middle >> 6) << 4)), axis=1)
    return scales, minimums


def _k_values(blocks: Bytes, values: Bytes) -> Floats:
    """d * scale * q - dmin * minimum over eight sub-blocks: values `[num_blocks, 8, 32]`."""
    scales, minimums = _k_scales(blocks[:, 4:16])
    scale = (_half(blocks, 0) * scales.astype(np.float32))[:, :, None]
    minimum = (_half(blocks, 2) * minimums.astype(np.float32))[:, :, None]
    return (scale * values.astype(np.float32) - minimum).reshape(-1, 256)


def _q4_k(blocks: Bytes) -> Floats:
    values = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _k_values(blocks, values)


def _q5_k(blocks: Bytes) -> Floats:
    values = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    sub_block = np.arange(8, dtype=np.uint8)[None, :, None]
    fifth = ((blocks[:, None, 16:48] >> sub_block) & np.uint8(1)) * np.uint8(16)
    return _k_values(blocks, values | fifth)


def _q6_k(blocks: Bytes) -> Floats:
    low = blocks[:, :128].reshape(-1, 2, 64)
    pair = np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None]
    top = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> pair) & 3
    values = _nibbles(low).reshape(-1, 2, 4, 32) | (top << 4)
    signed = values.reshape(-1, 16, 16).astype(np.int8) - 32
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (scale[:, :, None] * signed.astype(np.float32)).reshape(-1, 256)


_DECODERS: dict[GgmlType, Callable[[Bytes], Floats]] = {
    GgmlType.Q4_0: _q4_0,
    GgmlType.Q4_1: _q4_1,
    GgmlType.Q5_0: _q5_0,
    GgmlType.Q5_1: _q5_1,
    GgmlType.Q8_0: _q8_0,
    GgmlType.Q4_K: _q4_k,
    GgmlType.Q5_K: _q5_k,
    GgmlType.Q6_K: _q6_k,
}
