// What the attention kernels are told: one layer's cache, the requests of the step, queries, keys and values.
#pragma once

#include <cstdint>

namespace ridgeline {

inline constexpr int64_t kMaxHeadDim = 1024;

// One layer of a paged cache (layout: kv_cache.hpp). head_dim and block_size are multiples of 16.
struct KvLayer {
    uint8_t* pool;  // 64-byte aligned, zeroed when it was made
    int64_t page_bytes;
    int64_t slot;  // of the layer in its page
    int64_t num_kv_heads;
    int64_t head_dim;
    int64_t block_size;
    bool is_int8;  // else bf16
};

// K and V of one kv head in one block; int8 numbers have a float scale per token.
static inline int64_t kv_head_bytes(int64_t head_dim, int64_t block_size, bool is_int8) {
    return 2 * block_size * (is_int8 ? head_dim + 4 : head_dim * 2);
}

// The requests of a step: request r has the step's tokens [row_starts[r], row_starts[r + 1]), at positions context_before[r]
// and on; its position p lies in block block_tables[r * table_width + p / block_size].
struct StepRows {
    const int32_t* row_starts;  // [num_requests + 1]
    const int32_t* context_before;
    const int32_t* block_tables;
    int64_t num_requests;
    int64_t table_width;
};

// keys, values: [num_tokens, stride], num_kv_heads * head_dim features, keys already rotated.
struct KvWriteArgs {
    KvLayer layer;
    StepRows rows;
    const float* keys;
    int64_t key_stride;
    const float* values;
    int64_t value_stride;
};

// y[t, h] = sum_p softmax_p(scale * q[t, h] . k[p, h / group]) v[p, h / group] over the positions p that token t sees:
// its own and those before it, the last `window` of them if window > 0. With softcap > 0 a score s becomes
// softcap * tanh(s / softcap). q and y: [num_tokens, stride], num_heads * head_dim features; y may be q.
struct AttentionArgs {
    KvLayer layer;
    StepRows rows;
    const float* q;
    int64_t q_stride;
    float* y;
    int64_t y_stride;
    int64_t num_heads;
    float scale;
    int64_t window;
    float softcap;
    float* workspace;  // shared by the team; may be null. Lets few requests with long contexts use all threads.
    int64_t workspace_floats;
};

}  // namespace ridgeline
