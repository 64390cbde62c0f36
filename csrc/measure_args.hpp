// What the measuring kernels are told (measure.hpp).
#pragma once

#include <cstdint>

namespace ridgeline {

struct ReadArgs {
    const float* data;
    int64_t num_floats;
    int64_t rounds;
    bool prefetches;
    float* sums;  // one a thread; keeps the compiler from dropping the loads
};

// The units that multiply and add.
enum class Unit : int32_t { kFloat32, kVnniInt8, kAmxInt8, kAmxBf16 };

struct PeakArgs {
    Unit unit;
    int64_t rounds;
    float* sums;  // one a thread
};

}  // namespace ridgeline
