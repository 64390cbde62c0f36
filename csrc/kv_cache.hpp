// The paged KV cache: where keys and values live, and how they get there.
//
// The pool is one array of pages of equal bytes. A page is one block of `block_size` tokens (a multiple of 16) for every
// layer of its group; `slot` counts those layers:
//
//   pool   [num_blocks] pages
//   page   [layers_per_page][num_kv_heads] (K part | V part), bf16; as int8 (kv_int8.hpp): (K part | V part | K scales | V scales)
//   K part [block_size / 16][head_dim / 2][16 tokens][2 dims]
//   V part [head_dim / 16][block_size / 2][16 dims][2 tokens]
//
//          token   0     1          15                     dim     0     1          15
//   K  d=0,1     k0 k1 k0 k1  ...  k0 k1      V  t=0,1           v0 v1 v0 v1  ...  v0 v1    each line 64 bytes:
//      d=2,3     k2 k3 k2 k3  ...  k2 k3         t=2,3           v2 v3 v2 v3  ...  v2 v3    16 pairs
//
// Both are B tiles of AMX (TDPBF16PS multiplies pairs along its inner dimension: dims for q K^T, tokens for P V) and the operand
// order of AVX-512's VDPBF16PS; the other tiers widen each line to its even and odd halves. Prefill and decode
// read the same bytes. Floor of a write: 4 * head_dim bytes a token, head and layer.
#pragma once

#include "attention_args.hpp"
#include "simd.hpp"

namespace ridgeline::RL_TIER {

RL_INLINE int64_t kv_part_bytes(const KvLayer& layer) { return layer.block_size * layer.head_dim * (layer.is_int8 ? 1 : 2); }

RL_INLINE uint8_t* key_part(const KvLayer& layer, int64_t block, int64_t head) {
    return layer.pool + block * layer.page_bytes +
           (layer.slot * layer.num_kv_heads + head) * kv_head_bytes(layer.head_dim, layer.block_size, layer.is_int8);
}

RL_INLINE uint8_t* value_part(const KvLayer& layer, int64_t block, int64_t head) {
    return key_part(layer, block, head) + kv_part_bytes(layer);
}

// Of int8 pages, [block_size] each.
RL_INLINE float* key_scales(const KvLayer& layer, int64_t block, int64_t head) {
    return reinterpret_cast<float*>(key_part(layer, block, head) + 2 * kv_part_bytes(layer));
}

RL_INLINE float* value_scales(const KvLayer& layer, int64_t block, int64_t head) {
    return key_scales(layer, block, head) + layer.block_size;
}

RL_INLINE int64_t block_of(const StepRows& rows, int64_t request, int64_t block_index) {
    return rows.block_tables[request * rows.table_width + block_index];
}

// One token's key of one head, `offset` tokens into the block.
static void write_key(const KvLayer& layer, int64_t block, int64_t head, int64_t offset, const float* key) {
    uint8_t* to = key_part(layer, block, head) + offset / 16 * layer.head_dim * 32 + offset % 16 * 4;
    for (int64_t d = 0; d < layer.head_dim; d += 16) {
        uint16_t rounded[16];
        for (int i = 0; i < 16; i += kLanes) store_bf16(rounded + i, load(key + d + i));
        for (int i = 0; i < 16; i += 2) std::memcpy(to + (d + i) * 32, rounded + i, 4);
    }
}

static void write_value(const KvLayer& layer, int64_t block, int64_t head, int64_t offset, const float* value) {
    uint8_t* to = value_part(layer, block, head) + offset / 2 * 64 + offset % 2 * 2;
    for (int64_t d = 0; d < layer.head_dim; d += 16, to += layer.block_size * 32) {
        uint16_t rounded[16];
        for (int i = 0; i < 16; i += kLanes) store_bf16(rounded + i, load(value + d + i));
        for (int i = 0; i < 16; ++i) std::memcpy(to + i * 4, rounded + i, 2);
    }
}

// Zero the values of the tokens from `offset` to the end of the block: attention multiplies them by a probability of
// zero, which must not meet a NaN left by the block's last owner. (Keys need no care: their scores are masked.)
static void clear_value_tail(const KvLayer& layer, int64_t block, int64_t head, int64_t offset) {
    uint8_t* line = value_part(layer, block, head) + offset / 2 * 64;
    const int64_t whole_pairs = (layer.block_size - offset) / 2;
    for (int64_t d = 0; d < layer.head_dim; d += 16, line += layer.block_size * 32) {
        uint8_t* pairs = line;
        if (offset % 2 != 0) {
            for (int i = 0; i < 16; ++i) std::memset(line + i * 4 + 2, 0, 2);
            pairs += 64;
        }
        std::memset(pairs, 0, static_cast<size_t>(whole_pairs * 64));
    }
}

}  // namespace ridgeline::RL_TIER
