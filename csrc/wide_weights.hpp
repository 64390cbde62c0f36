// Codes of int4 and int8 panels -> weights of 16 bits, as two bytes: "upper" counts 256ths of what "lower" counts.
//
//   int4: A * code + B        int8: code * slope / 128, rounded        (linear_args.hpp has the layouts)
//
// Either is the file's own grid to 16 bits of its row's range. dpbusd wants unsigned weights, so there both bytes are kept
// with 128 added; else they are signed. Few rows take the weights line by line in registers; for many a panel is
// expanded once into two planes of AMX tiles. Floor: 10 instructions a line of 64 weights.
#pragma once

#include <cstdint>

#include "linear_args.hpp"
#include "quantize_rows.hpp"
#include "simd.hpp"

namespace ridgeline::RL_TIER {

inline constexpr int kPrefetchBytes = 8192;

// The packed bytes of 32 inputs of one tile: where its codes are, and the two numbers of its grids for 16 outputs.
template <WeightKind kKind>
struct TileCodes;

#if defined(__AVX512BW__)

// A line of 64 weights of 16 bits by bytes.
struct WideLine {
    __m512i upper, lower;
};

// Weights of the even and of the odd bytes of a line, biased by 128 * 257.
RL_INLINE WideLine by_bytes(__m512i even, __m512i odd) {
    const __m512i low_byte = _mm512_set1_epi16(255);
    constexpr int kSelect = 0xca;  // first ? second : third, bit by bit
    return {_mm512_ternarylogic_epi32(low_byte, _mm512_srli_epi16(even, 8), odd, kSelect),
            _mm512_ternarylogic_epi32(low_byte, even, _mm512_slli_epi16(odd, 8), kSelect)};
}

// 16 numbers, one in each half of a 32-bit lane, in both halves.
RL_INLINE __m512i both_halves(__m512i low) { return _mm512_or_si512(low, _mm512_slli_epi32(low, 16)); }

template <>
struct TileCodes<WeightKind::kInt4> {
    const uint8_t* codes;
    __m512i slope, offset;

    RL_INLINE TileCodes at(const uint8_t* step, int tile) {
        const __m512i pairs = _mm512_loadu_si512(step + tile * 320 + 256);
        const __m512i a = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff)), b = _mm512_srli_epi32(pairs, 16);
        return {step + tile * 320, both_halves(a), _mm512_or_si512(_mm512_slli_epi32(b, 16), b)};
    }

    // body(line 0..7, its weights)
    template <class Body>
    RL_INLINE void for_each_line(const TileCodes& self, Body body) {
#pragma GCC unroll 4
        for (int line = 0; line < 4; ++line) {
            const __m512i codes = _mm512_loadu_si512(self.codes + line * 64);
            body(line, expand(self, codes));
            body(line + 4, expand(self, _mm512_srli_epi16(codes, 4)));
        }
    }

    // 64 codes, one in the low nibble of each byte.
    RL_INLINE WideLine expand(const TileCodes& self, __m512i codes) {
        const __m512i nibble = _mm512_set1_epi16(15);
        const __m512i even = _mm512_mullo_epi16(_mm512_and_si512(codes, nibble), self.slope);
        const __m512i odd = _mm512_mullo_epi16(_mm512_and_si512(_mm512_srli_epi16(codes, 8), nibble), self.slope);
        return by_bytes(_mm512_add_epi16(even, self.offset), _mm512_add_epi16(odd, self.offset));
    }
};

template <>
struct TileCodes<WeightKind::kInt8> {
    const uint8_t* codes;
    __m512i slope;

    RL_INLINE TileCodes at(const uint8_t* step, int tile) {
        const __m256i slopes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(step + 1024 + tile * 32));
        return {step + tile * 512, both_halves(_mm512_cvtepu16_epi32(slopes))};
    }

    template <class Body>
    RL_INLINE void for_each_line(const TileCodes& self, Body body) {
#pragma GCC unroll 8
        for (int line = 0; line < 8; ++line) body(line, expand(self, _mm512_loadu_si512(self.codes + line * 64)));
    }

    RL_INLINE WideLine expand(const TileCodes& self, __m512i codes) {
        const __m512i bias = _mm512_set1_epi16(static_cast<int16_t>(128 * 257));
        const __m512i even = _mm512_mulhrs_epi16(_mm512_slli_epi16(codes, 8), self.slope);
        const __m512i odd = _mm512_mulhrs_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(static_cast<int16_t>(0xff00))), self.slope);
        return by_bytes(_mm512_add_epi16(even, bias), _mm512_add_epi16(odd, bias));
    }
};

template <WeightKind kKind>
RL_INLINE void expand_tile(const uint8_t* step, int tile, uint8_t* upper, uint8_t* lower) {
    const auto codes = TileCodes<kKind>::at(step, tile);
    TileCodes<kKind>::for_each_line(codes, [&](int line, WideLine weights) __attribute__((always_inline)) {
        _mm512_storeu_si512(upper + line * 64, weights.upper);
        _mm512_storeu_si512(lower + line * 64, weights.lower);
    });
}

#else

// body(line 0..7, byte 0..63 of it, the weight biased by 128 * 257)
template <>
struct TileCodes<WeightKind::kInt4> {
    template <class Body>
    RL_INLINE void for_each_weight(const uint8_t* step, int tile, Body body) {
        uint16_t pairs[32];
        const uint8_t* codes = step + tile * 320;
        std::memcpy(pairs, codes + 256, sizeof pairs);
        for (int line = 0; line < 4; ++line)
            for (int i = 0; i < 64; ++i) {
                const uint8_t two = codes[line * 64 + i];
                const int slope = pairs[i / 4 * 2], offset = pairs[i / 4 * 2 + 1];
                body(line, i, (two & 15) * slope + offset);
                body(line + 4, i, (two >> 4) * slope + offset);
            }
    }
};

template <>
struct TileCodes<WeightKind::kInt8> {
    template <class Body>
    RL_INLINE void for_each_weight(const uint8_t* step, int tile, Body body) {
        int16_t slopes[16];
        std::memcpy(slopes, step + 1024 + tile * 32, sizeof slopes);
        const int8_t* codes = reinterpret_cast<const int8_t*>(step) + tile * 512;
        for (int line = 0; line < 8; ++line)
            for (int i = 0; i < 64; ++i) body(line, i, ((codes[line * 64 + i] * slopes[i / 4] + 64) >> 7) + 128 * 257);
    }
};

template <WeightKind kKind>
RL_INLINE void expand_tile(const uint8_t* step, int tile, uint8_t* upper, uint8_t* lower) {
    constexpr uint8_t flip = kWeightBias == 128 ? 0 : 0x80;
    TileCodes<kKind>::for_each_weight(step, tile, [&](int line, int i, int weight) {
        upper[line * 64 + i] = static_cast<uint8_t>(weight >> 8) ^ flip;
        lower[line * 64 + i] = static_cast<uint8_t>(weight) ^ flip;
    });
}

#endif

inline constexpr int64_t kStepPlane = 2048;  // bytes of a plane of 64 inputs: two AMX tiles

// 64 inputs of a panel as two planes of bytes.
template <WeightKind kKind>
RL_INLINE void expand_step(const uint8_t* packed, uint8_t* upper, uint8_t* lower) {
    for (int64_t group = 0; group < 2; ++group, packed += step_bytes(kKind)) {
        for (int64_t byte = 0; byte < step_bytes(kKind); byte += 64) prefetch(packed + kPrefetchBytes + byte);
        for (int tile = 0; tile < 2; ++tile) {
            const int64_t at = tile * 1024 + group * 512;
            expand_tile<kKind>(packed, tile, upper + at, lower + at);
        }
    }
}

// A whole panel: the upper bytes, and `inputs * 32` bytes further the lower ones.
template <WeightKind kKind>
static void expand_panel(const uint8_t* packed, int64_t inputs, uint8_t* upper) {
    for (int64_t k = 0; k < inputs; k += 64, packed += 2 * step_bytes(kKind), upper += kStepPlane)
        expand_step<kKind>(packed, upper, upper + inputs * 32);
}

}  // namespace ridgeline::RL_TIER
