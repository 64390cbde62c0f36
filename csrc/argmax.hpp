// The most likely token of each row of logits: the position of the largest value, the first among equals.
// A row with a NaN gives -1, so that a broken model is reported and not sampled. Floor: the logits are read once.
#pragma once

#include "kernel_args.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"

namespace ridgeline::RL_TIER {

// Each lane keeps the largest value of its column, the vector that it came from and whether it met a NaN.
struct ArgmaxLanes {
    Vec best = splat(-__builtin_inff());
    VecInt best_step = {};
    VecInt unordered = {};

    RL_INLINE void take(ArgmaxLanes& self, Vec value, int32_t step) {
        const VecInt larger = (VecInt)(value > self.best);
        self.best = from_bits((bits_of(value) & larger) | (bits_of(self.best) & ~larger));
        self.best_step = ((VecInt{} + step) & larger) | (self.best_step & ~larger);
        self.unordered |= (VecInt)(value != value);
    }
};

static int32_t argmax_row(const float* x, int64_t width) {
    ArgmaxLanes lanes;
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) ArgmaxLanes::take(lanes, load(x + i), static_cast<int32_t>(i / kLanes));
    float best[kLanes];
    store(best, lanes.best);
    float largest = -__builtin_inff();
    int64_t index = 0;
    bool found = false;
    for (int lane = 0; lane < kLanes && i > 0; ++lane) {
        if (lanes.unordered[lane]) return -1;
        const int64_t candidate = static_cast<int64_t>(lanes.best_step[lane]) * kLanes + lane;
        if (!found || best[lane] > largest || (best[lane] == largest && candidate < index)) {
            largest = best[lane];
            index = candidate;
            found = true;
        }
    }
    for (; i < width; ++i) {
        if (x[i] != x[i]) return -1;
        if (x[i] > largest) {
            largest = x[i];
            index = i;
        }
    }
    return static_cast<int32_t>(index);
}

static void argmax(const ArgmaxArgs& args, Team& team) {
    const Range rows = team.share(args.num_rows);
    for (int64_t row = rows.begin; row < rows.end; ++row) args.index[row] = argmax_row(args.x + row * args.x_stride, args.width);
}

}  // namespace ridgeline::RL_TIER
