"""The tensor types of GGUF files that Ridgeline reads, and their byte sizes.

A quantized row is a run of blocks; a block holds `block_size` values in `type_size` bytes.
Layouts: ggml-common.h of the GGUF/ggml format. The decoders are in runtime/weights/dequant.py.
"""

from __future__ import annotations

from enum import IntEnum


class GgmlType(IntEnum):
    """A tensor type by its number in the file."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    BF16 = 30

    @property
    def block_size(self) -> int:
        """Values in a block; a row's length is a multiple of it."""
        return _SIZES[self][0]

    @property
    def type_size(self) -> int:
        """Bytes of a block."""
        return _SIZES[self][1]

    @property
    def is_quantized(self) -> bool:
        return self.block_size > 1

    def num_bytes(self, num_values: int) -> int:
        """Bytes of `num_values` values, which must fill whole blocks."""
        blocks, rest = divmod(num_values, self.block_size)
        if rest:
            raise ValueError(f"{num_values} values do not fill blocks of {self.block_size} ({self.name})")
        return blocks * self.type_size


_SIZES: dict[GgmlType, tuple[int, int]] = {
    GgmlType.F32: (1, 4),
    GgmlType.F16: (1, 2),
    GgmlType.BF16: (1, 2),
    GgmlType.Q4_0: (32, 18),
    GgmlType.Q4_1: (32, 20),
    GgmlType.Q5_0: (32, 22),
    GgmlType.Q5_1: (32, 24),
    GgmlType.Q8_0: (32, 34),
    GgmlType.Q4_K: (256, 144),
    GgmlType.Q5_K: (256, 176),
    GgmlType.Q6_K: (256, 210),
}

UNSUPPORTED_TYPES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Types that exist and that are refused, so that the refusal can say their name."""
