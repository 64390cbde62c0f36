// RMSNorm (Zhang & Sennrich 2019) over whole rows, or per head (Qwen3, Gemma 3) as several groups of a row.
//
//   y[r, g * width + i] = x[r, g * width + i] * weight[i] / sqrt(mean_i(x[r, g * width + i]^2) + eps)
//
// Floor: a row is read from L1/L2 twice and written once.
#pragma once

#include "kernel_args.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"

namespace ridgeline::RL_TIER {

// Sum of squares in one fixed order: four accumulators, element i in number (i / kLanes) % 4.
RL_INLINE float sum_of_squares(const float* x, int64_t width) {
    Vec acc[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
        for (int k = 0; k < 4; ++k) {
            const Vec value = load(x + i + k * kLanes);
            acc[k] = fma(value, value, acc[k]);
        }
    }
    for (int k = 0; i < width; i += kLanes, ++k) {
        const int64_t rest = width - i;
        const Vec value = rest >= kLanes ? load(x + i) : load_partial(x + i, rest);
        acc[k] = fma(value, value, acc[k]);
    }
    return reduce_add((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

// 1 / sqrt(mean(x^2) + eps): multiply by it, then by the weight.
RL_INLINE float rms_scale(const float* x, int64_t width, float eps) {
    return 1.0f / __builtin_sqrtf(sum_of_squares(x, width) / static_cast<float>(width) + eps);
}

// One group of `width` features; y may be x.
RL_INLINE void rms_norm_row(const float* x, const float* weight, float* y, int64_t width, float eps) {
    const Vec scale = splat(rms_scale(x, width, eps));
    for_each_vec(width, [&](int64_t i, int64_t count) {
        if (count == kLanes)
            store(y + i, load(x + i) * scale * load(weight + i));
        else
            store_partial(y + i, load_partial(x + i, count) * scale * load_partial(weight + i, count), count);
    });
}

static void rms_norm(const RmsNormArgs& args, Team& team) {
    const Range items = team.share(args.num_rows * args.num_groups);
    for (int64_t item = items.begin; item < items.end; ++item) {
        const int64_t row = item / args.num_groups;
        const int64_t feature = item % args.num_groups * args.width;
        rms_norm_row(args.x + row * args.x_stride + feature, args.weight, args.y + row * args.y_stride + feature, args.width,
                     args.eps);
    }
}

}  // namespace ridgeline::RL_TIER
