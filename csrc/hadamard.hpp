// Rotation of a head by a Walsh-Hadamard matrix, in place: q . k = (H q) . (H k), for H is orthogonal.
//
// A few dims of keys are many times larger than the others, and a scale shared with them leaves the others few steps. H spreads
// each dim over all, so that no dim stands out (QuaRot: Ashkboos et al. 2024). Of each run of n dims, n the largest power
// of two that divides head_dim, log2(n) stages of butterflies:
//
//   for h = 1, 2, 4, .. n/2      x[i], x[i + h]  ->  x[i] + x[i + h], x[i] - x[i + h]        at the end times n^-1/2
//
// H is its own inverse. Floor: log2(n) + 1 vector operations per kLanes dims, within registers.
#pragma once

#include "simd.hpp"

namespace ridgeline::RL_TIER {

// Lane i meets lane i ^ H: the sum where bit H of i is clear, lower minus upper where it is set.
template <int H>
RL_INLINE Vec butterfly_lanes(Vec x) {
    VecInt partner;
    Vec sign;
    for (int i = 0; i < kLanes; ++i) {
        partner[i] = i ^ H;
        sign[i] = (i & H) != 0 ? -1.0f : 1.0f;
    }
    return fma(x, sign, __builtin_shuffle(x, partner));
}

RL_INLINE Vec butterfly_within(Vec x) {
    x = butterfly_lanes<1>(x);
    x = butterfly_lanes<2>(x);
    if constexpr (kLanes >= 8) x = butterfly_lanes<4>(x);
    if constexpr (kLanes >= 16) x = butterfly_lanes<8>(x);
    return x;
}

// head_dim is a multiple of 16.
static void rotate_by_hadamard(float* x, int64_t head_dim) {
    const int64_t length = head_dim & -head_dim;
    const Vec norm = splat(1.0f / __builtin_sqrtf(static_cast<float>(length)));
    for (int64_t i = 0; i < head_dim; i += kLanes) store(x + i, butterfly_within(load(x + i)));
    for (int64_t h = kLanes; h < length; h *= 2)
        for (int64_t i = 0; i < head_dim; i += 2 * h)
            for (int64_t j = i; j < i + h; j += kLanes) {
                const Vec a = load(x + j), b = load(x + j + h);
                store(x + j, a + b);
                store(x + j + h, a - b);
            }
    for (int64_t i = 0; i < head_dim; i += kLanes) store(x + i, load(x + i) * norm);
}

}  // namespace ridgeline::RL_TIER
