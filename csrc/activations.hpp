// The gated activations of the feed-forward layers (Shazeer 2020): SiLU and the tanh form of GELU.
#pragma once

#include "function_args.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"
#include "vector_math.hpp"

namespace ridgeline::RL_TIER {

// x * sigmoid(x)
RL_INLINE Vec silu(Vec x) { return x / (splat(1.0f) + exp(-x)); }

// x / 2 * (1 + tanh(u)) = x * sigmoid(2 u), u = sqrt(2 / pi) * (x + 0.044715 x^3) (Hendrycks & Gimpel 2016).
RL_INLINE Vec gelu_tanh(Vec x) {
    const Vec cubic = fma(splat(0.044715f) * x * x, x, x);
    return x / (splat(1.0f) + exp(splat(-2.0f * 0.7978845608f) * cubic));
}

template <class F>
RL_INLINE void apply_each(const ApplyArgs& args, Team& team, F function) {
    const Range range = team.share(args.size, kLanes);
    for_each_vec(range.end - range.begin, [&](int64_t i, int64_t count) {
        const int64_t at = range.begin + i;
        store_partial(args.y + at, function(load_partial(args.x + at, count)), count);
    });
}

static void apply(const ApplyArgs& args, Team& team) {
    switch (args.function) {
        case Function::kExp2: return apply_each(args, team, [](Vec x) { return exp2(x); });
        case Function::kExp: return apply_each(args, team, [](Vec x) { return exp(x); });
        case Function::kSigmoid: return apply_each(args, team, [](Vec x) { return sigmoid(x); });
        case Function::kTanh: return apply_each(args, team, [](Vec x) { return tanh(x); });
        case Function::kSilu: return apply_each(args, team, [](Vec x) { return silu(x); });
        case Function::kGeluTanh: return apply_each(args, team, [](Vec x) { return gelu_tanh(x); });
    }
}

}  // namespace ridgeline::RL_TIER
