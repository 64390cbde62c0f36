// Products of 16-bit activations with an int8 panel: exact integer sums, one float epilogue.
//
// `multiply_int8<kRows>(panel, rows, row_bytes, inputs, scales, out)` gives out[row][32] for kRows rows. Which instructions
// sum is the tier's affair, and so is the number of rows at once; the integers are the same.
#pragma once

#include <cstdint>

#include "linear_args.hpp"
#include "quantize_rows.hpp"
#include "simd.hpp"

namespace ridgeline::RL_TIER {

inline constexpr int kPrefetchBytes = 16384;

RL_INLINE RowTail tail_of(const uint8_t* plane, int64_t inputs) {
    RowTail tail;
    std::memcpy(&tail, plane + inputs, sizeof tail);
    return tail;
}

#if defined(__AVX512VNNI__)

// (256 * (high - 128 * high_sum) + (low - 128 * low_sum)) * row scale * output scale, for 16 outputs.
RL_INLINE Vec combine_planes(__m512i high, __m512i low, RowTail high_tail, RowTail low_tail, Vec output_scales) {
    const __m512i h = _mm512_sub_epi32(high, _mm512_set1_epi32(kWeightBias * high_tail.sum));
    const __m512i l = _mm512_sub_epi32(low, _mm512_set1_epi32(kWeightBias * low_tail.sum));
    const Vec sum = fma(splat(256.0f), _mm512_cvtepi32_ps(h), _mm512_cvtepi32_ps(l));
    return sum * (splat(high_tail.scale) * output_scales);
}

// VNNI: kRows rows x 32 outputs in 4 * kRows accumulators.
template <int kRows>
static void multiply_int8_vnni(const uint8_t* panel, const uint8_t* rows, int64_t row_bytes, int64_t inputs,
                               const float* scales, float* out) {
    const int64_t plane_bytes = row_bytes / 2;
    __m512i sums[kRows][2][2];  // [row][plane][tile]
    for (auto& row : sums)
        for (auto& plane : row)
            for (auto& tile : plane) tile = _mm512_setzero_si512();
    for (int64_t k = 0; k < inputs; k += 64, panel += 2048) {
#pragma GCC unroll 4
        for (int line = 0; line < 16; ++line) {
            const __m512i weights[2] = {_mm512_loadu_si512(panel + line * 64), _mm512_loadu_si512(panel + 1024 + line * 64)};
            prefetch(panel + kPrefetchBytes + line * 64);
            prefetch(panel + kPrefetchBytes + 1024 + line * 64);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
                for (int plane = 0; plane < 2; ++plane) {
                    int32_t four;
                    std::memcpy(&four, rows + r * row_bytes + plane * plane_bytes + k + line * 4, sizeof four);
                    const __m512i x = _mm512_set1_epi32(four);
                    sums[r][plane][0] = _mm512_dpbusd_epi32(sums[r][plane][0], weights[0], x);
                    sums[r][plane][1] = _mm512_dpbusd_epi32(sums[r][plane][1], weights[1], x);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        const RowTail high = tail_of(rows + r * row_bytes, inputs), low = tail_of(rows + r * row_bytes + plane_bytes, inputs);
        for (int tile = 0; tile < 2; ++tile)
            store(out + r * 32 + tile * 16, combine_planes(sums[r][0][tile], sums[r][1][tile], high, low, load(scales + tile * 16)));
    }
}

#endif

#if defined(__AMX_TILE__)

// AMX: a row's two planes are two rows of an A tile, so a tile holds 8 rows; kTiles A tiles against the panel's two B tiles.
template <int kTiles>
static void multiply_int8_amx(const uint8_t* panel, const uint8_t* rows, int64_t row_bytes, int64_t inputs,
                              const float* scales, int64_t num_rows, bool streams, float* out) {
    alignas(64) int32_t sums[kTiles * 16 * 32];
    const int64_t plane_bytes = row_bytes / 2;
    const uint8_t* second = rows + 8 * row_bytes;
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kTiles == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < inputs; k += 64, panel += 2048) {
        if (streams)
            for (int line = 0; line < 32; ++line) prefetch(panel + kPrefetchBytes + line * 64);
        _tile_loadd(4, rows + k, plane_bytes);
        _tile_loadd(6, panel, 64);
        _tile_dpbsud(0, 4, 6);
        _tile_loadd(7, panel + 1024, 64);
        _tile_dpbsud(1, 4, 7);
        if constexpr (kTiles == 2) {
            _tile_loadd(5, second + k, plane_bytes);
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        }
    }
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    if constexpr (kTiles == 2) {
        _tile_stored(2, sums + 512, 128);
        _tile_stored(3, sums + 528, 128);
    }
    const Vec output_scales[2] = {load(scales), load(scales + 16)};
    for (int64_t r = 0; r < num_rows; ++r) {
        const RowTail high = tail_of(rows + r * row_bytes, inputs), low = tail_of(rows + r * row_bytes + plane_bytes, inputs);
        const int32_t* sum = sums + r * 64;
        for (int tile = 0; tile < 2; ++tile)
            store(out + r * 32 + tile * 16, combine_planes(_mm512_load_si512(sum + tile * 16), _mm512_load_si512(sum + 32 + tile * 16),
                                                           high, low, output_scales[tile]));
    }
}

#endif

#if !defined(__AVX512VNNI__)

// 512 products of 127 * 32512 still fit an int32: sums are exact within a block of inputs, blocks add up in float, in order.
inline constexpr int64_t kExactInputs = 512;

#if defined(__AVX2__)

// One tile of 16 outputs over [k, end): eight int32 partial sums a register, two for each of four outputs.
template <int kRows>
RL_INLINE void sum_tile(const uint8_t* panel, const uint8_t* rows, int64_t row_bytes, int64_t k, int64_t end, int32_t (*sums)[16]) {
    __m256i acc[kRows][4];
    for (auto& row : acc)
        for (auto& quad : row) quad = _mm256_setzero_si256();
    for (; k < end; k += 64, panel += 2048) {
        for (int line = 0; line < 16; ++line) {
            __m256i x[kRows];
            for (int r = 0; r < kRows; ++r) {
                int64_t four;
                std::memcpy(&four, rows + r * row_bytes + (k + line * 4) * 2, sizeof four);
                x[r] = _mm256_set1_epi64x(four);
            }
            for (int quad = 0; quad < 4; ++quad) {
                const __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(panel + line * 64 + quad * 16)));
                for (int r = 0; r < kRows; ++r) acc[r][quad] = _mm256_add_epi32(acc[r][quad], _mm256_madd_epi16(w, x[r]));
            }
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int quad = 0; quad < 4; ++quad) {
            alignas(32) int32_t pairs[8];
            _mm256_store_si256(reinterpret_cast<__m256i*>(pairs), acc[r][quad]);
            for (int i = 0; i < 4; ++i) sums[r][quad * 4 + i] = pairs[2 * i] + pairs[2 * i + 1];
        }
}

#else

template <int kRows>
RL_INLINE void sum_tile(const uint8_t* panel, const uint8_t* rows, int64_t row_bytes, int64_t k, int64_t end, int32_t (*sums)[16]) {
    std::memset(sums, 0, sizeof(int32_t) * 16 * kRows);
    for (; k < end; k += 64, panel += 2048) {
        for (int line = 0; line < 16; ++line) {
            const int8_t* w = reinterpret_cast<const int8_t*>(panel) + line * 64;
            for (int r = 0; r < kRows; ++r) {
                int16_t x[4];
                std::memcpy(x, rows + r * row_bytes + (k + line * 4) * 2, sizeof x);
                for (int n = 0; n < 16; ++n)
                    sums[r][n] += w[n * 4] * x[0] + w[n * 4 + 1] * x[1] + w[n * 4 + 2] * x[2] + w[n * 4 + 3] * x[3];
            }
        }
    }
}

#endif

template <int kRows>
static void multiply_int8_wide(const uint8_t* panel, const uint8_t* rows, int64_t row_bytes, int64_t inputs,
                               const float* scales, float* out) {
    for (int tile = 0; tile < 2; ++tile) {
        float totals[kRows][16] = {};
        for (int64_t k = 0; k < inputs; k += kExactInputs) {
            int32_t sums[kRows][16];
            const int64_t end = k + kExactInputs < inputs ? k + kExactInputs : inputs;
            sum_tile<kRows>(panel + k * 32 + tile * 1024, rows, row_bytes, k, end, sums);
            for (int r = 0; r < kRows; ++r)
                for (int n = 0; n < 16; ++n) totals[r][n] += static_cast<float>(sums[r][n]);
        }
        for (int r = 0; r < kRows; ++r) {
            const float scale = tail_of(rows + r * row_bytes, inputs * 2).scale;
            for (int n = 0; n < 16; ++n) out[r * 32 + tile * 16 + n] = totals[r][n] * (scale * scales[tile * 16 + n]);
        }
    }
}

#endif

// ---- The tier's choice ----

#if defined(__AMX_TILE__)
inline constexpr int64_t kInt8Rows = 16;
#elif defined(__AVX512VNNI__)
inline constexpr int64_t kInt8Rows = 6;
#else
inline constexpr int64_t kInt8Rows = 2;
#endif

// out[num_rows][32], num_rows within 1..kInt8Rows. `streams`: the panel comes from memory, not from a cache.
RL_INLINE void multiply_int8(const uint8_t* panel, const uint8_t* rows, int64_t row_bytes, int64_t inputs, const float* scales,
                             int64_t num_rows, bool streams, float* out) {
#if defined(__AMX_TILE__)
    if (num_rows == 1) return multiply_int8_vnni<1>(panel, rows, row_bytes, inputs, scales, out);
    if (num_rows <= 8) return multiply_int8_amx<1>(panel, rows, row_bytes, inputs, scales, num_rows, streams, out);
    multiply_int8_amx<2>(panel, rows, row_bytes, inputs, scales, num_rows, streams, out);
#elif defined(__AVX512VNNI__)
    (void)streams;
    for (; num_rows >= 6; num_rows -= 6, rows += 6 * row_bytes, out += 6 * 32)
        multiply_int8_vnni<6>(panel, rows, row_bytes, inputs, scales, out);
    for (; num_rows >= 2; num_rows -= 2, rows += 2 * row_bytes, out += 2 * 32)
        multiply_int8_vnni<2>(panel, rows, row_bytes, inputs, scales, out);
    if (num_rows == 1) multiply_int8_vnni<1>(panel, rows, row_bytes, inputs, scales, out);
#else
    (void)streams;
    if (num_rows == 2) return multiply_int8_wide<2>(panel, rows, row_bytes, inputs, scales, out);
    multiply_int8_wide<1>(panel, rows, row_bytes, inputs, scales, out);
#endif
}

// An int4 panel as two int8 panels (see linear_args.hpp): upper bytes, and `panel_bytes` further the lower ones, whose weight is
// 1 / 256. Together they are the file's own grid to 16 bits of a row's range, which 8 bits a row would not be.
static void expand_int4_panel(const uint8_t* packed, int64_t inputs, uint8_t* panel) {
    constexpr uint8_t flip = kWeightBias == 128 ? 0 : 0x80;
    const int64_t panel_bytes = inputs * 32;
    for (int64_t group = 0; group < inputs / 32; ++group)
        for (int tile = 0; tile < 2; ++tile, packed += 320) {
            uint16_t pairs[32], slope[64], offset[64];
            std::memcpy(pairs, packed + 256, sizeof pairs);
            for (int i = 0; i < 64; ++i) {
                slope[i] = pairs[i / 4 * 2];
                offset[i] = pairs[i / 4 * 2 + 1];
            }
            uint8_t* upper = panel + group / 2 * 2048 + tile * 1024 + group % 2 * 512;
            uint8_t* lower = upper + panel_bytes;
            for (int line = 0; line < 4; ++line)
                for (int i = 0; i < 64; ++i) {
                    const uint8_t two = packed[line * 64 + i];
                    const uint16_t first = static_cast<uint16_t>((two & 15) * slope[i] + offset[i]);
                    const uint16_t second = static_cast<uint16_t>((two >> 4) * slope[i] + offset[i]);
                    upper[line * 64 + i] = static_cast<uint8_t>(first >> 8) ^ flip;
                    upper[256 + line * 64 + i] = static_cast<uint8_t>(second >> 8) ^ flip;
                    lower[line * 64 + i] = static_cast<uint8_t>(first) ^ flip;
                    lower[256 + line * 64 + i] = static_cast<uint8_t>(second) ^ flip;
                }
        }
}

// As multiply_int8, for an expanded int4 panel.
RL_INLINE void multiply_int4(const uint8_t* expanded, const uint8_t* rows, int64_t row_bytes, int64_t inputs, const float* scales,
                             int64_t num_rows, float* out) {
    float lower_scales[32];
    alignas(64) float lower[kInt8Rows * 32];
    for (int i = 0; i < 32; ++i) lower_scales[i] = scales[i] * (1.0f / 256.0f);
    multiply_int8(expanded, rows, row_bytes, inputs, scales, num_rows, false, out);
    multiply_int8(expanded + inputs * 32, rows, row_bytes, inputs, lower_scales, num_rows, false, lower);
    for (int64_t i = 0; i < num_rows * 32; ++i) out[i] += lower[i];
}

}  // namespace ridgeline::RL_TIER
