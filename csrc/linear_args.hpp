// A packed weight matrix, quantised activation rows, and what a matrix product is told.
//
// y = x W^T + bias for W of `num_outputs` rows and `num_inputs` columns. W is kept in panels of 32 outputs, each a run of
// K steps; a step holds two tiles of 16 outputs, each 16 lines of 64 bytes (an AMX B tile, and one AVX-512 register a line):
//
//   bf16     step of 32 inputs:  line r = 16 outputs x inputs 2r, 2r + 1
//   float32  step of 1 input:    one line of 32 outputs
//   int8     step of 32 inputs, 1088 bytes: 2 x 8 lines of codes (line r = 16 outputs x inputs 4r .. 4r + 3), then for
//            32 outputs a slope of 16 bits, at most 127 * 256.   weight16 = code * slope / 128, rounded
//   int4     step of 32 inputs, 640 bytes: two halves of 320, each 4 lines of nibbles (low: inputs 4r.., high:
//            16 + 4r..), then for 16 outputs (A, B) of 16 bits.   weight16 = A * code + B - 128 * 257
//
// A group of 32 inputs of an output so has a grid of its own, d * code or d * code + m, and the weight in 16 bits is worth
// scale[output] * weight16 / 256: slope = 32768 d / scale, A = 256 d / scale, B = 256 m / scale + 128 * 257. Two bytes of
// weight times two of activation: every product is integer arithmetic (linear_integer.hpp).
//
// A gated matrix stacks gate above up; a panel then holds 16 gates in its first tile and their 16 ups in the second.
#pragma once

#include <cstdint>

namespace ridgeline {

enum class WeightKind : int32_t { kInt8, kInt4, kBf16, kFloat32 };

inline constexpr int64_t kPanelOutputs = 32;

struct PackedMatrix {
    WeightKind kind;
    bool gated;
    int64_t num_outputs;
    int64_t num_inputs;
    int64_t num_panels;
    int64_t panel_bytes;
    uint8_t* panels;
    float* scales;      // [num_panels * 32], int8 and int4 only
    float* biases;      // [num_panels * 32] in panel order, or null
};

inline constexpr bool is_integer(WeightKind kind) { return kind == WeightKind::kInt8 || kind == WeightKind::kInt4; }

// Bytes of 32 inputs x 32 outputs of an integer kind.
inline constexpr int64_t step_bytes(WeightKind kind) { return kind == WeightKind::kInt8 ? 1088 : 640; }

// More inputs could overflow the sums of integers.
inline constexpr int64_t kMostIntegerInputs = 65536;

// How far inputs are padded (with zeros) for a kind.
inline int64_t padded_inputs(WeightKind kind, int64_t num_inputs) {
    const int64_t step = kind == WeightKind::kFloat32 ? 1 : kind == WeightKind::kBf16 ? 32 : 64;
    return (num_inputs + step - 1) / step * step;
}

inline int64_t panel_bytes(WeightKind kind, int64_t num_inputs) {
    const int64_t inputs = padded_inputs(kind, num_inputs);
    switch (kind) {
        case WeightKind::kInt8:
        case WeightKind::kInt4: return inputs / 32 * step_bytes(kind);
        case WeightKind::kBf16: return inputs * 64;
        case WeightKind::kFloat32: return inputs * 128;
    }
    return 0;
}

// One activation row as a product wants it; rows follow each other at this distance.
//
//   int8, int4   16-bit integers x ~ scale * (256 * high + low): on tiers with 8-bit dot products two
//                planes [inputs int8 | 64-byte RowTail], high then low; else [inputs int16 | two tails]
//   bf16         [inputs bf16 | 64 bytes]          float32   [inputs | 64 bytes]
//
// The 64 bytes also keep rows from lying a power of two apart.
inline int64_t quantized_row_bytes(WeightKind kind, int64_t num_inputs) {
    const int64_t inputs = padded_inputs(kind, num_inputs);
    if (kind == WeightKind::kFloat32) return (inputs * 4 + 63) / 64 * 64 + 64;
    if (kind == WeightKind::kBf16) return inputs * 2 + 64;
    return 2 * (inputs + 64);
}

// Tile loads read whole tiles: this many rows beyond the last must be readable.
inline constexpr int64_t kRowSlack = 32;

struct RowTail {
    float scale;
    int32_t sum;  // of the plane's integers
};

struct QuantizeArgs {
    WeightKind kind;
    const float* x;
    int64_t x_stride;
    int64_t num_inputs;
    int64_t num_rows;
    const float* norm_weight;  // null, or RMSNorm's weight: the row is normalised first
    float eps;
    uint8_t* rows;
};

enum class Epilogue : int32_t {
    kStore,     // y = v
    kResidual,  // y = residual + v
    kSilu,      // y = silu(gate) * up
    kGelu,      // y = gelu_tanh(gate) * up
    kSoftcap,   // y = cap * tanh(v / cap)
};

struct LinearArgs {
    const PackedMatrix* weight;
    const uint8_t* rows;  // quantised
    int64_t num_rows;
    float* y;
    int64_t y_stride;
    Epilogue epilogue;
    const float* residual;  // kResidual; may be y
    int64_t residual_stride;
    float softcap;
};

// y[r] = scale * W[token_ids[r]].
struct EmbedArgs {
    const PackedMatrix* table;  // not gated
    const int32_t* token_ids;
    int64_t num_rows;
    float scale;
    float* y;
    int64_t y_stride;
};

// One matrix of a stack as it lies in the file.
struct MatrixPart {
    const uint8_t* data;
    int32_t ggml_type;
    int64_t num_rows;
    int64_t row_bytes;
    const int64_t* row_order;  // row i of the part is row row_order[i] of the file; null: as it lies
};

struct PackArgs {
    PackedMatrix* matrix;
    const MatrixPart* parts;
    int64_t num_parts;
};

}  // namespace ridgeline
