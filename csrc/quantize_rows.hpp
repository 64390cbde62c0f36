// Activation rows -> what the matrix products eat, with RMSNorm on the way where a norm feeds the product.
//
// 16-bit activations: per-token int8 is too coarse for greedy text to stay that of float32, so x = scale * q with
// q in +-127 * 256, split as q = 256 * high + low where the tier multiplies bytes. Row-wise and independent of the batch.
#pragma once

#include <cstdint>

#include "linear_args.hpp"
#include "norm.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"

namespace ridgeline::RL_TIER {

#if defined(__AVX512VNNI__)
inline constexpr bool kSplitsPlanes = true;  // dpbusd: unsigned weights, signed activations
inline constexpr int kWeightBias = 128;
#else
inline constexpr bool kSplitsPlanes = false;  // 16-bit multiply-add
inline constexpr int kWeightBias = 0;
#endif

inline constexpr float kLargestInt16 = 127.0f * 256.0f;

// to[i] = x[i] * scale (* weight[i]), zero up to `padded`. Returns the largest magnitude; NaN or infinity anywhere gives NaN.
static float scale_row(const float* x, const float* weight, float scale, int64_t length, int64_t padded, float* to) {
    const Vec factor = splat(scale);
    Vec largest = zero(), poison = zero();
    for_each_vec(length, [&](int64_t i, int64_t count) {
        Vec value = (count == kLanes ? load(x + i) : load_partial(x + i, count)) * factor;
        if (weight != nullptr) value = value * (count == kLanes ? load(weight + i) : load_partial(weight + i, count));
        largest = max(abs(value), largest);
        poison = fma(value, zero(), poison);
        if (count == kLanes)
            store(to + i, value);
        else
            store_partial(to + i, value, count);
    });
    for (int64_t i = length; i < padded; ++i) to[i] = 0.0f;
    return reduce_max(largest) + reduce_add(poison);
}

static int32_t rounded(float value) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to nearest even
    return static_cast<int32_t>((value + magic) - magic);
}

static void quantize_row_int16(const float* x, float largest, int64_t length, uint8_t* row) {
    const float scale = largest / kLargestInt16;
    const float inverse = largest > 0.0f ? kLargestInt16 / largest : 0.0f;
    if constexpr (kSplitsPlanes) {
        int8_t* high = reinterpret_cast<int8_t*>(row);
        int8_t* low = high + length + 64;
        int32_t high_sum = 0, low_sum = 0;
#if defined(__AVX512F__)
        __m512i high_sums = _mm512_setzero_si512(), low_sums = high_sums;
        for (int64_t i = 0; i < length; i += 16) {  // length is a multiple of 64
            const __m512i value = _mm512_cvtps_epi32(load(x + i) * splat(inverse));
            const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(value, _mm512_set1_epi32(128)), 8);
            const __m512i lower = _mm512_sub_epi32(value, _mm512_slli_epi32(upper, 8));
            high_sums = _mm512_add_epi32(high_sums, upper);
            low_sums = _mm512_add_epi32(low_sums, lower);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(high + i), _mm512_cvtepi32_epi8(upper));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(low + i), _mm512_cvtepi32_epi8(lower));
        }
        high_sum = _mm512_reduce_add_epi32(high_sums);
        low_sum = _mm512_reduce_add_epi32(low_sums);
#else
        for (int64_t i = 0; i < length; ++i) {
            const int32_t value = rounded(x[i] * inverse);
            const int32_t upper = (value + 128) >> 8;
            high[i] = static_cast<int8_t>(upper);
            low[i] = static_cast<int8_t>(value - upper * 256);
            high_sum += upper;
            low_sum += value - upper * 256;
        }
#endif
        const RowTail tails[2] = {{scale, high_sum}, {scale, low_sum}};
        std::memcpy(high + length, &tails[0], sizeof(RowTail));
        std::memcpy(low + length, &tails[1], sizeof(RowTail));
    } else {
        int16_t* values = reinterpret_cast<int16_t*>(row);
        for (int64_t i = 0; i < length; ++i) values[i] = static_cast<int16_t>(rounded(x[i] * inverse));
        const RowTail tail = {scale, 0};
        std::memcpy(values + length, &tail, sizeof tail);
    }
}

static void quantize_rows(const QuantizeArgs& args, Team& team) {
    const int64_t padded = padded_inputs(args.kind, args.num_inputs);
    const int64_t row_bytes = quantized_row_bytes(args.kind, args.num_inputs);
    float* scaled = static_cast<float*>(team.scratch(static_cast<size_t>(padded + kLanes) * sizeof(float)));
    const Range rows = team.share(args.num_rows);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
        const float* x = args.x + r * args.x_stride;
        uint8_t* row = args.rows + r * row_bytes;
        const float norm = args.norm_weight != nullptr ? rms_scale(x, args.num_inputs, args.eps) : 1.0f;
        const float largest = scale_row(x, args.norm_weight, norm, args.num_inputs, padded, scaled);
        if (args.kind == WeightKind::kFloat32)
            std::memcpy(row, scaled, static_cast<size_t>(padded) * sizeof(float));
        else if (args.kind == WeightKind::kBf16)
            for (int64_t i = 0; i < padded; i += kLanes) store_bf16(reinterpret_cast<uint16_t*>(row) + i, load(scaled + i));
        else
            quantize_row_int16(scaled, largest, padded, row);
    }
}

}  // namespace ridgeline::RL_TIER
