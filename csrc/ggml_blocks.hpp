// Rows of ggml blocks -> float, for packing weights at load.
//
// A ggml row of k elements is k / block_elements consecutive blocks of block_bytes bytes, each with its own scale
// (`d`, float16) and, in the `_1` and K types, an offset (`m` or `dmin`). Layouts, little-endian:
//
//   Q4_0   d | 16 bytes of nibbles                         x = d * (q - 8)       32 elements, 18 bytes
//   Q4_1   d m | 16 bytes of nibbles                       x = d * q + m         32, 20
//   Q5_0   d | 32 fifth bits | 16 bytes of nibbles         x = d * (q - 16)      32, 22
//   Q5_1   d m | 32 fifth bits | 16 bytes of nibbles       x = d * q + m         32, 24
//   Q8_0   d | 32 int8                                     x = d * q             32, 34
//   Q4_K   d dmin | 12 bytes: 8 x (scale, min) of 6 bits | 128 bytes of nibbles                  256, 144
//   Q5_K   d dmin | same 12 bytes | 32 bytes: bit s of byte l is the fifth bit of (s, l) | 128   256, 176
//          sub-block s of 32:  x = d * scale[s] * q - dmin * min[s]
//   Q6_K   128 bytes of low nibbles | 64 bytes of high bit pairs | 16 int8 scales | d            256, 210
//          sub-block s of 16:  x = d * scale[s] * (q - 32)
//
// In the 32-element types byte j holds element j in its low and element j + 16 in its high nibble; in the K types
// the 32 bytes of a pair of sub-blocks hold the first in the low and the second in the high nibbles.
// Source: the ggml file format (ggml-common.h names the structs). Floor: bytes of the file, once, at load.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.hpp"

namespace ridgeline::RL_TIER {

// Numbers as in GGUF files.
enum class GgmlType : uint32_t {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    BF16 = 30,
};

struct GgmlBlock {
    int elements;  // 0: type not supported
    int bytes;
};

RL_INLINE GgmlBlock ggml_block(GgmlType type) {
    switch (type) {
        case GgmlType::F32: return {1, 4};
        case GgmlType::F16: return {1, 2};
        case GgmlType::BF16: return {1, 2};
        case GgmlType::Q4_0: return {32, 18};
        case GgmlType::Q4_1: return {32, 20};
        case GgmlType::Q5_0: return {32, 22};
        case GgmlType::Q5_1: return {32, 24};
        case GgmlType::Q8_0: return {32, 34};
        case GgmlType::Q4_K: return {256, 144};
        case GgmlType::Q5_K: return {256, 176};
        case GgmlType::Q6_K: return {256, 210};
    }
    return {0, 0};
}

RL_INLINE float float_from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// IEEE half -> float by integer arithmetic: exact, subnormals included, on every tier.
RL_INLINE float float_from_half(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 31u;
    const uint32_t mantissa = half & 0x3ffu;
    if (exponent == 31) return float_from_bits(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) return float_from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

RL_INLINE float load_half(const uint8_t* src) {
    uint16_t bits;
    std::memcpy(&bits, src, 2);
    return float_from_half(bits);
}

RL_INLINE uint32_t load_u32(const uint8_t* src) {
    uint32_t bits;
    std::memcpy(&bits, src, 4);
    return bits;
}

// Nibble types of 32 elements: x = d * q + offset, q of 4 bits or, with `fifth_bits`, of 5.
static inline void dequantize_nibbles(const uint8_t* nibbles, uint32_t fifth_bits, float d, float offset, float* dst) {
    for (int j = 0; j < 16; ++j) {
        const uint32_t low = (nibbles[j] & 15u) | ((fifth_bits >> j) & 1u) << 4;
        const uint32_t high = (nibbles[j] >> 4) | ((fifth_bits >> (j + 16)) & 1u) << 4;
        dst[j] = d * static_cast<float>(low) + offset;
        dst[j + 16] = d * static_cast<float>(high) + offset;
    }
}

static inline void dequantize_q8_0(const uint8_t* block, float* dst) {
    const float d = load_half(block);
    for (int j = 0; j < 32; ++j) dst[j] = d * static_cast<float>(static_cast<int8_t>(block[2 + j]));
}

struct ScaleAndMin {
    float scale;
    float min;
};

// The s-th of 8 (scale, min) pairs of 6 bits in 12 bytes: bytes 0-3 hold the scales 0-3 and bytes 4-7 the mins 0-3 in
// their low six bits; bytes 8-11 hold the low four bits of pairs 4-7, whose high two are the top bits of bytes 0-7.
RL_INLINE ScaleAndMin unpack_k_scale(const uint8_t* packed, int s) {
    if (s < 4) return {static_cast<float>(packed[s] & 63), static_cast<float>(packed[s + 4] & 63)};
    const uint8_t low = packed[s + 4];
    const int scale = (low & 15) | (packed[s - 4] >> 6) << 4;
    const int min = (low >> 4) | (packed[s] >> 6) << 4;
    return {static_cast<float>(scale), static_cast<float>(min)};
}

// Q4_K, and Q5_K when `fifth` points at its 32 bytes of fifth bits.
static inline void dequantize_q45_k(const uint8_t* block, const uint8_t* fifth, const uint8_t* nibbles, float* dst) {
    const float d = load_half(block);
    const float dmin = load_half(block + 2);
    for (int s = 0; s < 8; ++s) {
        const ScaleAndMin pair = unpack_k_scale(block + 4, s);
        const float scale = d * pair.scale;
        const float min = dmin * pair.min;
        const uint8_t* bytes = nibbles + (s / 2) * 32;
        const int shift = (s % 2) * 4;
        for (int l = 0; l < 32; ++l) {
            const int extra = fifth ? ((fifth[l] >> s) & 1) << 4 : 0;
            dst[s * 32 + l] = scale * static_cast<float>(((bytes[l] >> shift) & 15) | extra) - min;
        }
    }
}

// Q6_K: each half of 128 elements is four runs of 32: run r takes nibble byte (r % 2) * 32 + l (low nibble for r < 2),
// bit pair r of byte l of the high bits, and the scales 2 r and 2 r + 1 of its half.
static inline void dequantize_q6_k(const uint8_t* block, float* dst) {
    const float d = load_half(block + 208);
    for (int half = 0; half < 2; ++half) {
        const uint8_t* low = block + half * 64;
        const uint8_t* high = block + 128 + half * 32;
        const uint8_t* scales = block + 192 + half * 8;
        for (int r = 0; r < 4; ++r) {
            for (int l = 0; l < 32; ++l) {
                const int nibble = (low[(r % 2) * 32 + l] >> (r / 2 * 4)) & 15;
                const int q = (nibble | ((high[l] >> (2 * r)) & 3) << 4) - 32;
                const float scale = d * static_cast<float>(static_cast<int8_t>(scales[2 * r + l / 16]));
                dst[half * 128 + r * 32 + l] = scale * static_cast<float>(q);
            }
        }
    }
}

static inline void dequantize_block(GgmlType type, const uint8_t* block, float* dst) {
    switch (type) {
        case GgmlType::F32: std::memcpy(dst, block, 4); return;
        case GgmlType::F16: *dst = load_half(block); return;
        case GgmlType::BF16: *dst = float_from_bits(static_cast<uint32_t>(block[0] | block[1] << 8) << 16); return;
        case GgmlType::Q4_0: {
            const float d = load_half(block);
            return dequantize_nibbles(block + 2, 0, d, -8.0f * d, dst);
        }
        case GgmlType::Q4_1: return dequantize_nibbles(block + 4, 0, load_half(block), load_half(block + 2), dst);
        case GgmlType::Q5_0: {
            const float d = load_half(block);
            return dequantize_nibbles(block + 6, load_u32(block + 2), d, -16.0f * d, dst);
        }
        case GgmlType::Q5_1:
            return dequantize_nibbles(block + 8, load_u32(block + 4), load_half(block), load_half(block + 2), dst);
        case GgmlType::Q8_0: return dequantize_q8_0(block, dst);
        case GgmlType::Q4_K: return dequantize_q45_k(block, nullptr, block + 16, dst);
        case GgmlType::Q5_K: return dequantize_q45_k(block, block + 16, block + 48, dst);
        case GgmlType::Q6_K: return dequantize_q6_k(block, dst);
    }
}

// k elements (a multiple of the type's block) at `src` -> k floats at `dst`. `src` needs no alignment.
static inline void dequantize_row(GgmlType type, const uint8_t* src, float* dst, int64_t k) {
    const GgmlBlock block = ggml_block(type);
    if (block.elements == 0) return;
    for (int64_t i = 0; i < k; i += block.elements, src += block.bytes) dequantize_block(type, src, dst + i);
}

}  // namespace ridgeline::RL_TIER
