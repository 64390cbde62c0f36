// Rotary position embedding (Su et al. 2021), rotate-half convention, in place.
//
// Of each head the first rotary_dim features are rotated, pair (i, i + rotary_dim / 2) by the angle position * frequency[i]:
//
//   | x[0 .. half) | x[half .. 2 half) | rest untouched |        a' = a cos - b sin
//        a                b                                       b' = b cos + a sin
//
// Frequencies, and any scaling of them, are in the table of cosines and sines. Floor: x is read and written once.
#pragma once

#include "kernel_args.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"

namespace ridgeline::RL_TIER {

RL_INLINE void rotate_head(float* x, const float* cos, const float* sin, int64_t half) {
    for_each_vec(half, [&](int64_t i, int64_t count) {
        const bool whole = count == kLanes;
        const Vec a = whole ? load(x + i) : load_partial(x + i, count);
        const Vec b = whole ? load(x + half + i) : load_partial(x + half + i, count);
        const Vec c = whole ? load(cos + i) : load_partial(cos + i, count);
        const Vec s = whole ? load(sin + i) : load_partial(sin + i, count);
        const Vec new_a = fma(a, c, -(b * s));
        const Vec new_b = fma(b, c, a * s);
        if (whole) {
            store(x + i, new_a);
            store(x + half + i, new_b);
        } else {
            store_partial(x + i, new_a, count);
            store_partial(x + half + i, new_b, count);
        }
    });
}

static void rope(const RopeArgs& args, Team& team) {
    const int64_t half = args.rotary_dim / 2;
    const Range rows = team.share(args.num_rows);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float* cos = args.cos + args.positions[row] * half;
        const float* sin = args.sin + args.positions[row] * half;
        float* x = args.x + row * args.x_stride;
        for (int64_t head = 0; head < args.num_heads; ++head) rotate_head(x + head * args.head_dim, cos, sin, half);
    }
}

}  // namespace ridgeline::RL_TIER
