// What the sampling kernels are told. Plain structs without tier code.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ridgeline {

// How one request samples; the numpy dtype ROW of ridgeline/runtime/sampler.py, field by field.
struct SampleRow {
    uint64_t seed;
    double top_p;               // 1: all
    int64_t top_k;              // 0: all
    float scale;                // log2(e) / temperature; 0: the likeliest token
    float min_p;                // 0: all
    float repetition_penalty;   // 1: none
    float presence_penalty;     // 0: none
    float frequency_penalty;    // 0: none
    int32_t num_prompt;
};

static_assert(sizeof(SampleRow) == 48 && offsetof(SampleRow, num_prompt) == 44, "must match ROW");

// chosen[r] = the token that row r samples, -1 where its logits are not finite. Penalties are written into the logits.
struct SampleArgs {
    float* logits;             // [num_rows, width]
    int64_t width;
    int64_t num_rows;
    const SampleRow* rows;     // [num_rows]
    const int32_t* tokens;     // [any, tokens_stride], a request's tokens by position
    int64_t tokens_stride;
    const int32_t* slots;      // [num_rows] row of `tokens`
    const int32_t* lengths;    // [num_rows] tokens so far, and the position of the one to be drawn
    int32_t* chosen;           // [num_rows]
};

// For row rows[i] of the logits: the sum of its weights at temperature 1 (-1: not finite, and nothing else is written), how many tokens come before tokens[i] (larger, or equal with a lower id),
// and the ids of the `num_top` largest (largest first, the lower id first on ties; num_top <= width).
struct LogprobArgs {
    const float* logits;       // [any, width]
    int64_t width;
    int64_t num_rows;
    const int32_t* rows;       // [num_rows]
    const int32_t* tokens;     // [num_rows]
    int64_t num_top;
    int64_t* mass;             // [num_rows]
    int32_t* above;            // [num_rows]
    int32_t* top_ids;          // [num_rows, num_top]
};

}  // namespace ridgeline
