// What each kernel is told. Plain structs without tier code, shared by the kernels, the tape and the bindings.
//
// Activations are float32 [num_rows, stride]; all sizes count elements unless a name says bytes.
#pragma once

#include <cstdint>

namespace ridgeline {

// y[r, g * width + i] = x[r, g * width + i] / rms(x[r, g * width ..]) * weight[i]. y may be x.
struct RmsNormArgs {
    const float* x;
    int64_t x_stride;
    float* y;
    int64_t y_stride;
    const float* weight;  // [width]
    int64_t width;
    int64_t num_groups;   // groups of `width` features in a row
    int64_t num_rows;
    float eps;
};

// Rotates, in place, the first rotary_dim features of each head: (x[i], x[i + rotary_dim / 2]) by the angle of row r's position.
struct RopeArgs {
    float* x;
    int64_t x_stride;
    int64_t num_heads;
    int64_t head_dim;
    int64_t rotary_dim;
    const float* cos;          // [num_positions, rotary_dim / 2]
    const float* sin;
    const int32_t* positions;  // [num_rows]
    int64_t num_rows;
};

// y = x + z, element by element. y may be x or z.
struct AddArgs {
    const float* x;
    int64_t x_stride;
    const float* z;
    int64_t z_stride;
    float* y;
    int64_t y_stride;
    int64_t width;
    int64_t num_rows;
};

// index[r] = position of the largest x[r, :width] (the first of equals; NaN never wins).
struct ArgmaxArgs {
    const float* x;
    int64_t x_stride;
    int64_t width;
    int64_t num_rows;
    int32_t* index;
};

}  // namespace ridgeline
