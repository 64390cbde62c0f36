// Element by element operations on rows of activations.
#pragma once

#include "kernel_args.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"

namespace ridgeline::RL_TIER {

static void add(const AddArgs& args, Team& team) {
    const Range rows = team.share(args.num_rows);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float* x = args.x + row * args.x_stride;
        const float* z = args.z + row * args.z_stride;
        float* y = args.y + row * args.y_stride;
        for_each_vec(args.width, [&](int64_t i, int64_t count) {
            if (count == kLanes)
                store(y + i, load(x + i) + load(z + i));
            else
                store_partial(y + i, load_partial(x + i, count) + load_partial(z + i, count), count);
        });
    }
}

}  // namespace ridgeline::RL_TIER
