// Products of 16-bit activations with the 16-bit weights of int4 and int8 panels: exact integer sums, one float epilogue.
//
// x = 256 high + low and w = 256 upper + lower (wide_weights.hpp), so x w / 256 = 256 high upper + (low upper + high lower),
// three products of bytes; what is left out, low lower / 256, is below the rounding of both. Which instructions sum is
// the tier's affair, and so is the number of rows at once; the integers are the same.
//
//   one or two rows   AVX-512 VNNI on the panel as it is packed. Floor: its bytes from memory
//   up to 16          AMX: 64 inputs of the panel expanded at a time, beside the products of those before
//   more rows         the panel expanded once, then AMX tiles (or VNNI) over all rows. Floor: 3 x the peak's time for int8
//
// Measured on one thread of a busy AMX machine: 512 rows x 576 inputs reach 2.1 of the 7.7 T operations a second of the int8
// peak, quantising the rows included. In a loop of its own a tile load and its product take 1.2 times the product alone from
// L1 and 1.6 times from L2, so tile loads do not explain the rest; what does is not measured yet. Earlier prefetches and row
// blocks smaller than 1 MB were slower, loading all tiles before the products made no difference.
#pragma once

#include <cstdint>

#include "linear_args.hpp"
#include "quantize_rows.hpp"
#include "simd.hpp"
#include "wide_weights.hpp"

namespace ridgeline::RL_TIER {

RL_INLINE RowTail tail_of(const uint8_t* plane, int64_t inputs) {
    RowTail tail;
    std::memcpy(&tail, plane + inputs, sizeof tail);
    return tail;
}

#if defined(__AVX512VNNI__)

// What the unsigned weights' bias of 128 adds to a row's two sums, and the row's scale.
struct RowCorrection {
    int32_t high, middle;
    float scale;
};

RL_INLINE RowCorrection correction_of(const uint8_t* row, int64_t row_bytes, int64_t inputs) {
    const RowTail high = tail_of(row, inputs), low = tail_of(row + row_bytes / 2, inputs);
    return {kWeightBias * high.sum, kWeightBias * (high.sum + low.sum), high.scale};
}

// (256 * high + middle), corrected, * row scale * output scale, for 16 outputs.
RL_INLINE Vec combine(__m512i high, __m512i middle, RowCorrection row, Vec output_scales) {
    const __m512i h = _mm512_sub_epi32(high, _mm512_set1_epi32(row.high));
    const __m512i m = _mm512_sub_epi32(middle, _mm512_set1_epi32(row.middle));
    return fma(splat(256.0f), _mm512_cvtepi32_ps(h), _mm512_cvtepi32_ps(m)) * (splat(row.scale) * output_scales);
}

RL_INLINE __m512i four_of(const uint8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}

// kRows rows against a panel as it is packed: the weights are expanded in registers.
template <WeightKind kKind, int kRows>
static void multiply_packed(const uint8_t* packed, const uint8_t* rows, int64_t row_bytes, int64_t inputs, const float* scales, float* out) {
    constexpr int64_t kStep = step_bytes(kKind);
    const int64_t plane_bytes = row_bytes / 2;
    __m512i high_sums[2][kRows], low_sums[2][kRows], lower_sums[2][kRows];  // [tile]; the middle is low + lower
    for (int tile = 0; tile < 2; ++tile)
        for (int r = 0; r < kRows; ++r) high_sums[tile][r] = low_sums[tile][r] = lower_sums[tile][r] = _mm512_setzero_si512();
    for (int64_t k = 0; k < inputs; k += 32, packed += kStep) {
        for (int64_t byte = 0; byte < kStep; byte += 64) prefetch(packed + kPrefetchBytes + byte);
#pragma GCC unroll 2
        for (int tile = 0; tile < 2; ++tile)
            TileCodes<kKind>::for_each_line(TileCodes<kKind>::at(packed, tile), [&](int line, WideLine weights) __attribute__((always_inline)) {
#pragma GCC unroll 2
                for (int r = 0; r < kRows; ++r) {
                    const uint8_t* x = rows + r * row_bytes + k + line * 4;
                    const __m512i high = four_of(x), low = four_of(x + plane_bytes);
                    high_sums[tile][r] = _mm512_dpbusd_epi32(high_sums[tile][r], weights.upper, high);
                    low_sums[tile][r] = _mm512_dpbusd_epi32(low_sums[tile][r], weights.upper, low);
                    lower_sums[tile][r] = _mm512_dpbusd_epi32(lower_sums[tile][r], weights.lower, high);
                }
            });
    }
    for (int r = 0; r < kRows; ++r) {
        const RowCorrection row = correction_of(rows + r * row_bytes, row_bytes, inputs);
        for (int tile = 0; tile < 2; ++tile)
            store(out + r * 32 + tile * 16, combine(high_sums[tile][r], _mm512_add_epi32(low_sums[tile][r], lower_sums[tile][r]), row,
                                                    load(scales + tile * 16)));
    }
}

#endif

// ---- `multiply_planes`: 1..kIntegerRows rows against an expanded panel ----

#if defined(__AMX_TILE__)

inline constexpr int64_t kIntegerRows = 16;

// Tiles: 0, 1 high x upper and 2, 3 the middle, for two tiles of outputs; 4, 5 the rows' high and low; 6, 7 weights.
RL_INLINE void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// 64 inputs: six products, six loads.
RL_INLINE void add_step(const uint8_t* high, int64_t row_bytes, const uint8_t* upper, const uint8_t* lower) {
    _tile_loadd(4, high, row_bytes);
    _tile_loadd(6, upper, 64);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, upper + 1024, 64);
    _tile_dpbsud(1, 4, 7);
    _tile_loadd(5, high + row_bytes / 2, row_bytes);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
    _tile_loadd(6, lower, 64);
    _tile_dpbsud(2, 4, 6);
    _tile_loadd(7, lower + 1024, 64);
    _tile_dpbsud(3, 4, 7);
}

static void finish_sums(const uint8_t* rows, int64_t row_bytes, int64_t inputs, const float* scales, int64_t num_rows, float* out) {
    alignas(64) int32_t sums[2][16 * 32];
    _tile_stored(0, sums[0], 128);
    _tile_stored(1, sums[0] + 16, 128);
    _tile_stored(2, sums[1], 128);
    _tile_stored(3, sums[1] + 16, 128);
    const Vec output_scales[2] = {load(scales), load(scales + 16)};
    for (int64_t r = 0; r < num_rows; ++r) {
        const RowCorrection row = correction_of(rows + r * row_bytes, row_bytes, inputs);
        for (int64_t tile = 0, at = r * 32; tile < 2; ++tile, at += 16)
            store(out + at, combine(_mm512_load_si512(sums[0] + at), _mm512_load_si512(sums[1] + at), row, output_scales[tile]));
    }
}

static void multiply_planes(const uint8_t* upper, const uint8_t* rows, int64_t row_bytes, int64_t inputs, const float* scales,
                            int64_t num_rows, float* out) {
    zero_sums();
    for (int64_t k = 0; k < inputs; k += 64, upper += kStepPlane) add_step(rows + k, row_bytes, upper, upper + inputs * 32);
    finish_sums(rows, row_bytes, inputs, scales, num_rows, out);
}

// As multiply_planes on a packed panel, for rows that are all there are: a step is expanded while the one before is multiplied.
template <WeightKind kKind>
static void multiply_streamed(const uint8_t* packed, const uint8_t* rows, int64_t row_bytes, int64_t inputs, const float* scales,
                              int64_t num_rows, float* out) {
    alignas(64) uint8_t planes[2][2 * kStepPlane];
    zero_sums();
    expand_step<kKind>(packed, planes[0], planes[0] + kStepPlane);
    for (int64_t k = 0; k < inputs; k += 64) {
        packed += 2 * step_bytes(kKind);
        const uint8_t* current = planes[k / 64 % 2];
        uint8_t* next = planes[(k / 64 + 1) % 2];
        if (k + 64 < inputs) expand_step<kKind>(packed, next, next + kStepPlane);
        add_step(rows + k, row_bytes, current, current + kStepPlane);
    }
    finish_sums(rows, row_bytes, inputs, scales, num_rows, out);
}

#elif defined(__AVX512VNNI__)

inline constexpr int64_t kIntegerRows = 6;

static void multiply_planes(const uint8_t* upper, const uint8_t* rows, int64_t row_bytes, int64_t inputs, const float* scales,
                            int64_t num_rows, float* out) {
    const int64_t plane_bytes = row_bytes / 2;
    for (int tile = 0; tile < 2; ++tile) {
        __m512i high_sums[kIntegerRows], middle_sums[kIntegerRows];
        for (int r = 0; r < kIntegerRows; ++r) high_sums[r] = middle_sums[r] = _mm512_setzero_si512();
        for (int64_t k = 0; k < inputs; k += 4) {
            const uint8_t* line = upper + k / 64 * 2048 + tile * 1024 + k % 64 * 16;
            const __m512i u = _mm512_loadu_si512(line), l = _mm512_loadu_si512(line + inputs * 32);
#pragma GCC unroll 8
            for (int r = 0; r < kIntegerRows; ++r) {
                const uint8_t* x = rows + (r < num_rows ? r : 0) * row_bytes + k;
                const __m512i high = four_of(x), low = four_of(x + plane_bytes);
                high_sums[r] = _mm512_dpbusd_epi32(high_sums[r], u, high);
                middle_sums[r] = _mm512_dpbusd_epi32(middle_sums[r], u, low);
                middle_sums[r] = _mm512_dpbusd_epi32(middle_sums[r], l, high);
            }
        }
        for (int64_t r = 0; r < num_rows; ++r)
            store(out + r * 32 + tile * 16, combine(high_sums[r], middle_sums[r], correction_of(rows + r * row_bytes, row_bytes, inputs),
                                                    load(scales + tile * 16)));
    }
}

#else

inline constexpr int64_t kIntegerRows = 2;

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

// One plane of weights; the row's 16 bits at once.
template <int kRows>
static void multiply_plane(const uint8_t* panel, const uint8_t* rows, int64_t row_bytes, int64_t inputs,
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


static void multiply_planes(const uint8_t* upper, const uint8_t* rows, int64_t row_bytes, int64_t inputs, const float* scales,
                            int64_t num_rows, float* out) {
    float lower_scales[32];
    alignas(64) float lower[kIntegerRows * 32];
    for (int i = 0; i < 32; ++i) lower_scales[i] = scales[i] * (1.0f / 256.0f);
    const auto multiply = num_rows == 2 ? multiply_plane<2> : multiply_plane<1>;
    multiply(upper, rows, row_bytes, inputs, scales, out);
    multiply(upper + inputs * 32, rows, row_bytes, inputs, lower_scales, lower);
    for (int64_t i = 0; i < num_rows * 32; ++i) out[i] += lower[i];
}

#endif

// ---- Which of them ----

// Whether products of so many rows read the panel as it is packed.
RL_INLINE bool multiplies_packed(int64_t num_rows) {
#if defined(__AMX_TILE__)
    return num_rows <= kIntegerRows;
#elif defined(__AVX512VNNI__)
    return num_rows <= 2;
#else
    (void)num_rows;
    return false;
#endif
}

// out[num_rows][32], num_rows within 1..kIntegerRows; `planes` is the panel expanded, null where multiplies_packed says so.
template <WeightKind kKind>
RL_INLINE void multiply_integers(const uint8_t* packed, const uint8_t* planes, const uint8_t* rows, int64_t row_bytes, int64_t inputs,
                                 const float* scales, int64_t num_rows, float* out) {
    if (planes != nullptr) return multiply_planes(planes, rows, row_bytes, inputs, scales, num_rows, out);
#if defined(__AVX512VNNI__)
    if (num_rows == 1) return multiply_packed<kKind, 1>(packed, rows, row_bytes, inputs, scales, out);
    if (num_rows == 2) return multiply_packed<kKind, 2>(packed, rows, row_bytes, inputs, scales, out);
#endif
#if defined(__AMX_TILE__)
    multiply_streamed<kKind>(packed, rows, row_bytes, inputs, scales, num_rows, out);
#else
    (void)packed;
#endif
}

}  // namespace ridgeline::RL_TIER
