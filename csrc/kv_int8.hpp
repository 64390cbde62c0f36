// Keys and values as bytes: how they are written, and how attention reads them.
//
// A number is scale * n, n in -127..127, with one float scale per token, kv head and K or V. Keys are rotated first (hadamard.hpp);
// queries meet them rotated likewise. A head's share of a page:
//
//   K part [block_size / 16][head_dim / 4][16 tokens][4 dims]       | K scales [block_size] float
//   V part [head_dim / 16][block_size / 4][16 dims][4 tokens]       | V scales [block_size] float
//
// Attention multiplies bytes where it has tiles for that (attention_amx_int8.hpp). Else it expands a chunk to bf16 in the thread's scratch and goes on as with a bf16 cache: one line of bytes becomes two lines of
// pairs. Expansion is exact, for it yields n * 2^24: a byte shifted to the top of its lane and converted has at most 8
// significant bits. K scales then multiply scores, V scales probabilities.
// What a token leaves undone needs no clearing: stale bytes are finite, and meet a probability of zero.
//
// Floor: 2 * head_dim + 8 bytes a token, head and layer; expanding takes 14 vector operations per 4 * kLanes numbers.
#pragma once

#include "attention_dot.hpp"
#include "hadamard.hpp"
#include "kv_cache.hpp"
#include "simd.hpp"

namespace ridgeline::RL_TIER {

inline constexpr float kUnexpand = 1.0f / (1 << 24);

// ---- Writing ----

// x = scale * to; returns the scale. NaN or infinity anywhere makes it NaN.
static float bytes_of_head(const float* x, int64_t head_dim, int8_t* to) {
    Vec largest_lanes = zero(), poison = zero();
    for (int64_t d = 0; d < head_dim; d += kLanes) {
        largest_lanes = max(abs(load(x + d)), largest_lanes);
        poison = fma(load(x + d), zero(), poison);
    }
    const float largest = reduce_max(largest_lanes) + reduce_add(poison);
    const Vec inverse = splat(largest > 1e-30f ? 127.0f / largest : 0.0f);
    typedef int8_t VecByte __attribute__((vector_size(kLanes)));
    for (int64_t d = 0; d < head_dim; d += kLanes) {
        const VecByte bytes = __builtin_convertvector(to_int(round_nearest(load(x + d) * inverse)), VecByte);
        std::memcpy(to + d, &bytes, sizeof bytes);
    }
    return largest / 127.0f;
}

static void write_key_bytes(const KvLayer& layer, int64_t block, int64_t head, int64_t offset, const float* key) {
    float rotated[kMaxHeadDim];
    int8_t bytes[kMaxHeadDim];
    std::memcpy(rotated, key, static_cast<size_t>(layer.head_dim) * sizeof(float));
    rotate_by_hadamard(rotated, layer.head_dim);
    key_scales(layer, block, head)[offset] = bytes_of_head(rotated, layer.head_dim, bytes);
    uint8_t* to = key_part(layer, block, head) + offset / 16 * layer.head_dim * 16 + offset % 16 * 4;
    for (int64_t d = 0; d < layer.head_dim; d += 4) std::memcpy(to + d * 16, bytes + d, 4);
}

static void write_value_bytes(const KvLayer& layer, int64_t block, int64_t head, int64_t offset, const float* value) {
    int8_t bytes[kMaxHeadDim];
    value_scales(layer, block, head)[offset] = bytes_of_head(value, layer.head_dim, bytes);
    uint8_t* to = value_part(layer, block, head) + offset / 4 * 64 + offset % 4;
    for (int64_t d = 0; d < layer.head_dim; d += 16, to += layer.block_size * 16)
        for (int i = 0; i < 16; ++i) std::memcpy(to + i * 4, bytes + d + i, 1);
}

// ---- Reading ----

// A line of 16 x 4 bytes becomes the lines of 16 pairs of bf16 at `to` and after it.
RL_INLINE void expand_line(const uint8_t* line, uint8_t* to) {
    typedef uint32_t VecBits __attribute__((vector_size(sizeof(Vec))));
    const auto top_byte = [](VecBits x) { return (VecBits)bits_of(to_float((VecInt)(x & 0xff000000u))); };
    for (int64_t at = 0; at < 64; at += kLanes * 4) {
        VecBits x;
        std::memcpy(&x, line + at, sizeof x);
        const VecBits first = top_byte(x << 16) | top_byte(x << 24) >> 16, second = top_byte(x) | top_byte(x << 8) >> 16;
        std::memcpy(to + at, &first, sizeof first);
        std::memcpy(to + 64 + at, &second, sizeof second);
    }
}

// The chunk's keys in `expanded` ([kAttentionChunk / 16][head_dim / 2][16][2]); prefetches its values on the way.
static ChunkTiles expand_keys(const ChunkTiles& bytes, Span computed, uint8_t* expanded) {
    ChunkTiles tiles = {};
    tiles.head_dim = bytes.head_dim;
    for (int64_t group = computed.begin / kGroupTokens; group < computed.end / kGroupTokens; ++group) {
        uint8_t* to = expanded + group * bytes.head_dim * 32;
        tiles.keys[group] = to;
        for (int64_t line = 0; line < bytes.head_dim / 4; ++line) {
            prefetch(bytes.values[group] + line / 4 * bytes.dims_stride + line % 4 * 64);
            expand_line(bytes.keys[group] + line * 64, to + line * 128);
        }
    }
    return tiles;
}

// The chunk's values in `expanded` ([kAttentionChunk / 32][head_dim / 16][16 pairs of tokens][16][2]); prefetches the next
// chunk's keys, if there is one.
static ChunkTiles expand_values(const ChunkTiles& bytes, const ChunkTiles* next, Span computed, uint8_t* expanded) {
    ChunkTiles tiles = {};
    tiles.head_dim = bytes.head_dim;
    tiles.dims_stride = 1024;
    for (int64_t group = computed.begin / kGroupTokens; group < computed.end / kGroupTokens; ++group) {
        uint8_t* to = expanded + group / 2 * bytes.head_dim * 64 + group % 2 * 512;
        const uint8_t* ahead = next != nullptr ? next->keys[group] : nullptr;
        tiles.values[group] = to;
        for (int64_t line = 0; line < bytes.head_dim / 4; ++line) {
            if (ahead != nullptr) prefetch(ahead + line * 64);
            expand_line(bytes.values[group] + line / 4 * bytes.dims_stride + line % 4 * 64, to + line / 4 * 1024 + line % 4 * 128);
        }
    }
    return tiles;
}

// The chunk's scales, times `unit`: kUnexpand for products with expanded numbers. Prefetches those of the next chunk.
static void load_scales(const ChunkTiles& tiles, const ChunkTiles* next, Span computed, float unit, float* keys, float* values) {
    for (int64_t group = computed.begin / kGroupTokens; group < computed.end / kGroupTokens; ++group)
        for (int64_t i = 0; i < kGroupTokens; i += kLanes) {
            store(keys + group * kGroupTokens + i, load(tiles.key_scales[group] + i) * splat(unit));
            store(values + group * kGroupTokens + i, load(tiles.value_scales[group] + i) * splat(unit));
        }
    for (int64_t group = 0; next != nullptr && group < kChunkGroups; ++group) {
        if (next->key_scales[group] == nullptr) continue;
        prefetch(next->key_scales[group]);
        prefetch(next->value_scales[group]);
    }
}

}  // namespace ridgeline::RL_TIER
