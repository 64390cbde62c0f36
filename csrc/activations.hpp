// The gated activations of the feed-forward layers (Shazeer 2020): SiLU and the tanh form of GELU.
#pragma once

#include "simd.hpp"
#include "vector_math.hpp"

namespace ridgeline::RL_TIER {

// x * sigmoid(x)
RL_INLINE Vec silu(Vec x) { return x / (splat(1.0f) + exp(-x)); }

// x / 2 * (1 + tanh(u)) = x * sigmoid(2 u), u = sqrt(2 / pi) * (x + 0.044715 x^3) (Hendrycks & Gimpel 2016).
RL_INLINE Vec gelu_tanh(Vec x) {
    const Vec cubic = fma(splat(0.044715f) * x * x, x, x);
    return x / (splat(1.0f) + exp(splat(-2.0f * 0.7978845608f) * cubic));
}

}  // namespace ridgeline::RL_TIER
