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

inline constexpr int kVnniRows = 6;  // at once, where there is no AMX

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
inline constexpr int64_t kInt8Rows = kVnniRows;
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

#if defined(__AVX512BW__)

// A line of 64 weights of 16 bits by bytes.
struct WideLine {
    __m512i upper, lower;
};

// 64 codes, one in the low nibble of each byte, times A plus B.
RL_INLINE WideLine expand_codes(__m512i codes, __m512i slope, __m512i offset) {
    const __m512i nibble = _mm512_set1_epi16(15), low_byte = _mm512_set1_epi16(255);
    const __m512i even = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_and_si512(codes, nibble), slope), offset);
    const __m512i odd = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_and_si512(_mm512_srli_epi16(codes, 8), nibble), slope), offset);
    constexpr int kSelect = 0xca;  // first ? second : third
    return {_mm512_ternarylogic_epi32(low_byte, _mm512_srli_epi16(even, 8), odd, kSelect),
            _mm512_ternarylogic_epi32(low_byte, even, _mm512_slli_epi16(odd, 8), kSelect)};
}

// body(line 0..7 of the tile's 32 inputs, its weights).
template <class Body>
RL_INLINE void for_each_wide_line(const uint8_t* packed, Body body) {
    const __m512i pairs = _mm512_loadu_si512(packed + 256);
    const __m512i a = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff)), b = _mm512_srli_epi32(pairs, 16);
    const __m512i slope = _mm512_or_si512(a, _mm512_slli_epi32(a, 16)), offset = _mm512_or_si512(b, _mm512_slli_epi32(b, 16));
#pragma GCC unroll 4
    for (int line = 0; line < 4; ++line) {
        const __m512i codes = _mm512_loadu_si512(packed + line * 64);
        body(line, expand_codes(codes, slope, offset));
        body(line + 4, expand_codes(_mm512_srli_epi16(codes, 4), slope, offset));
    }
}

RL_INLINE void expand_int4_tile(const uint8_t* packed, uint8_t* upper, uint8_t* lower) {
    for_each_wide_line(packed, [&](int line, WideLine weights) {
        _mm512_storeu_si512(upper + line * 64, weights.upper);
        _mm512_storeu_si512(lower + line * 64, weights.lower);
    });
}

#else

RL_INLINE void expand_int4_tile(const uint8_t* packed, uint8_t* upper, uint8_t* lower) {
    uint16_t pairs[32], slope[64], offset[64];
    std::memcpy(pairs, packed + 256, sizeof pairs);
    for (int i = 0; i < 64; ++i) {
        slope[i] = pairs[i / 4 * 2];
        offset[i] = pairs[i / 4 * 2 + 1];
    }
    constexpr uint8_t flip = kWeightBias == 128 ? 0 : 0x80;
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

#endif

// An int4 panel as two int8 panels (see linear_args.hpp): upper bytes, and inputs * 32 bytes further the lower ones, whose
// weight is 1 / 256. Together they are the file's own grid to 16 bits of a row's range, which 8 bits a row would not be.
static void expand_int4_panel(const uint8_t* packed, int64_t inputs, uint8_t* panel) {
    for (int64_t group = 0; group < inputs / 32; ++group)
        for (int tile = 0; tile < 2; ++tile, packed += 320) {
            for (int line = 0; line < 5; ++line) prefetch(packed + kPrefetchBytes / 2 + line * 64);
            uint8_t* upper = panel + group / 2 * 2048 + tile * 1024 + group % 2 * 512;
            expand_int4_tile(packed, upper, upper + inputs * 32);
        }
}

#if defined(__AVX512VNNI__)

// The low plane sums low * upper + high * lower; what is left out, low * lower / 256, is below the rounding of both.
RL_INLINE RowTail middle_tail(RowTail high, RowTail low) { return {high.scale, high.sum + low.sum}; }

// One or two rows against a panel as it is packed: the weights are expanded in registers.
template <int kRows>
static void multiply_int4_vnni(const uint8_t* packed, const uint8_t* rows, int64_t row_bytes, int64_t inputs, const float* scales, float* out) {
    const int64_t plane_bytes = row_bytes / 2;
    __m512i high_sums[2][kRows], low_sums[2][kRows], middle_sums[2][kRows];  // [tile]; low and middle are added in the end
    for (int tile = 0; tile < 2; ++tile)
        for (int r = 0; r < kRows; ++r) high_sums[tile][r] = low_sums[tile][r] = middle_sums[tile][r] = _mm512_setzero_si512();
    for (int64_t k = 0; k < inputs; k += 32, packed += 640) {
        for (int line = 0; line < 10; ++line) prefetch(packed + kPrefetchBytes / 2 + line * 64);
#pragma GCC unroll 2
        for (int tile = 0; tile < 2; ++tile)
            for_each_wide_line(packed + tile * 320, [&](int line, WideLine weights) __attribute__((always_inline)) {
#pragma GCC unroll 2
                for (int r = 0; r < kRows; ++r) {
                    int32_t high_four, low_four;
                    std::memcpy(&high_four, rows + r * row_bytes + k + line * 4, 4);
                    std::memcpy(&low_four, rows + r * row_bytes + plane_bytes + k + line * 4, 4);
                    const __m512i high = _mm512_set1_epi32(high_four), low = _mm512_set1_epi32(low_four);
                    high_sums[tile][r] = _mm512_dpbusd_epi32(high_sums[tile][r], weights.upper, high);
                    low_sums[tile][r] = _mm512_dpbusd_epi32(low_sums[tile][r], weights.upper, low);
                    middle_sums[tile][r] = _mm512_dpbusd_epi32(middle_sums[tile][r], weights.lower, high);
                }
            });
    }
    for (int r = 0; r < kRows; ++r) {
        const RowTail high = tail_of(rows + r * row_bytes, inputs), low = tail_of(rows + r * row_bytes + plane_bytes, inputs);
        for (int tile = 0; tile < 2; ++tile)
            store(out + r * 32 + tile * 16, combine_planes(high_sums[tile][r], _mm512_add_epi32(low_sums[tile][r], middle_sums[tile][r]), high,
                                                           middle_tail(high, low), load(scales + tile * 16)));
    }
}

// Up to kInt8Rows rows against an expanded panel, without AMX.
static void multiply_int4_rows(const uint8_t* upper, const uint8_t* rows, int64_t row_bytes, int64_t inputs, const float* scales,
                               int64_t num_rows, float* out) {
    const int64_t plane_bytes = row_bytes / 2;
    for (int tile = 0; tile < 2; ++tile) {
        __m512i high_sums[kVnniRows], middle_sums[kVnniRows];
        for (int r = 0; r < kVnniRows; ++r) high_sums[r] = middle_sums[r] = _mm512_setzero_si512();
        for (int64_t k = 0; k < inputs; k += 4) {
            const uint8_t* line = upper + k / 64 * 2048 + tile * 1024 + k % 64 * 16;
            const __m512i u = _mm512_loadu_si512(line), l = _mm512_loadu_si512(line + inputs * 32);
#pragma GCC unroll 8
            for (int r = 0; r < kVnniRows; ++r) {
                const uint8_t* row = rows + (r < num_rows ? r : 0) * row_bytes + k;
                int32_t high_four, low_four;
                std::memcpy(&high_four, row, 4);
                std::memcpy(&low_four, row + plane_bytes, 4);
                const __m512i high = _mm512_set1_epi32(high_four);
                high_sums[r] = _mm512_dpbusd_epi32(high_sums[r], u, high);
                middle_sums[r] = _mm512_dpbusd_epi32(middle_sums[r], u, _mm512_set1_epi32(low_four));
                middle_sums[r] = _mm512_dpbusd_epi32(middle_sums[r], l, high);
            }
        }
        for (int64_t r = 0; r < num_rows; ++r) {
            const RowTail high = tail_of(rows + r * row_bytes, inputs), low = tail_of(rows + r * row_bytes + plane_bytes, inputs);
            store(out + r * 32 + tile * 16, combine_planes(high_sums[r], middle_sums[r], high, middle_tail(high, low), load(scales + tile * 16)));
        }
    }
}

#endif

#if defined(__AMX_TILE__)

// 16 rows: tiles 0-3 hold (high, low) x upper as in multiply_int8_amx, tiles 4 and 5 high x lower.
static void multiply_int4_amx(const uint8_t* upper, const uint8_t* rows, int64_t row_bytes, int64_t inputs, const float* scales,
                              int64_t num_rows, float* out) {
    alignas(64) int32_t sums[32 * 32], lower_sums[16 * 32];
    const int64_t plane_bytes = row_bytes / 2;
    const uint8_t* second = rows + 8 * row_bytes;
    const uint8_t* lower = upper + inputs * 32;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int64_t k = 0; k < inputs; k += 64, upper += 2048, lower += 2048) {
        _tile_loadd(6, rows + k, plane_bytes);
        _tile_loadd(7, upper, 64);
        _tile_dpbsud(0, 6, 7);
        _tile_loadd(7, upper + 1024, 64);
        _tile_dpbsud(1, 6, 7);
        _tile_loadd(6, second + k, plane_bytes);
        _tile_dpbsud(3, 6, 7);
        _tile_loadd(7, upper, 64);
        _tile_dpbsud(2, 6, 7);
        _tile_loadd(6, rows + k, row_bytes);
        _tile_loadd(7, lower, 64);
        _tile_dpbsud(4, 6, 7);
        _tile_loadd(7, lower + 1024, 64);
        _tile_dpbsud(5, 6, 7);
    }
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    _tile_stored(2, sums + 512, 128);
    _tile_stored(3, sums + 528, 128);
    _tile_stored(4, lower_sums, 128);
    _tile_stored(5, lower_sums + 16, 128);
    for (int64_t r = 0; r < num_rows; ++r) {
        const RowTail high = tail_of(rows + r * row_bytes, inputs), low = tail_of(rows + r * row_bytes + plane_bytes, inputs);
        for (int tile = 0; tile < 2; ++tile) {
            const int32_t* sum = sums + r * 64 + tile * 16;
            const __m512i middle = _mm512_add_epi32(_mm512_load_si512(sum + 32), _mm512_load_si512(lower_sums + r * 32 + tile * 16));
            store(out + r * 32 + tile * 16,
                  combine_planes(_mm512_load_si512(sum), middle, high, middle_tail(high, low), load(scales + tile * 16)));
        }
    }
}

#endif

// Whether products of so many rows read the panel as it is packed, without expanding it first.
RL_INLINE bool multiplies_int4_packed(int64_t num_rows) {
#if defined(__AVX512VNNI__)
    return num_rows <= 2;
#else
    (void)num_rows;
    return false;
#endif
}

// As multiply_int8, for an int4 panel: packed where multiplies_int4_packed says so, else expanded.
RL_INLINE void multiply_int4(const uint8_t* packed, const uint8_t* expanded, const uint8_t* rows, int64_t row_bytes, int64_t inputs,
                             const float* scales, int64_t num_rows, float* out) {
#if defined(__AVX512VNNI__)
    if (num_rows == 1) return multiply_int4_vnni<1>(packed, rows, row_bytes, inputs, scales, out);
    if (num_rows == 2) return multiply_int4_vnni<2>(packed, rows, row_bytes, inputs, scales, out);
#endif
#if defined(__AMX_TILE__)
    multiply_int4_amx(expanded, rows, row_bytes, inputs, scales, num_rows, out);
#elif defined(__AVX512VNNI__)
    multiply_int4_rows(expanded, rows, row_bytes, inputs, scales, num_rows, out);
#else
    (void)packed;
    float lower_scales[32];
    alignas(64) float lower[kInt8Rows * 32];
    for (int i = 0; i < 32; ++i) lower_scales[i] = scales[i] * (1.0f / 256.0f);
    multiply_int8(expanded, rows, row_bytes, inputs, scales, num_rows, false, out);
    multiply_int8(expanded + inputs * 32, rows, row_bytes, inputs, lower_scales, num_rows, false, lower);
    for (int64_t i = 0; i < num_rows * 32; ++i) out[i] += lower[i];
#endif
}

}  // namespace ridgeline::RL_TIER
