// A function of one variable applied to every element: how tests reach vector_math.hpp and activations.hpp on each tier.
#pragma once

#include <cstdint>

namespace ridgeline {

enum class Function : int32_t { kExp2, kExp, kSigmoid, kTanh, kSilu, kGeluTanh };

struct ApplyArgs {
    Function function;
    const float* x;
    float* y;
    int64_t size;
};

}  // namespace ridgeline
