// The two products of attention over one chunk of an int8 cache on AMX tiles, without expanding it (kv_int8.hpp has the layout).
//
// The other operand has 16 bits, in two planes of bytes, and each plane is a pass of integer products that are exact:
//
//   S = (256 Qh K^T + Ql K^T) * query scale * K scale      q in +-127 * 256     TDPBSSD, 64 dims deep
//   T = (256 Ph V + Pl V) * row scale                      p * V scale in 0..65535 of the row's largest     TDPBUSD, 64 tokens deep
//
// K tiles are read where they lie. V tiles hold 64 tokens, which lie in up to four blocks: their lines are copied together first.
// Needs head_dim to be a multiple of 64 up to 256. Floor: as bf16's tiles, 16 cycles a product, but half the bytes.
// Measured on one thread, a group of 3 heads of 64, in ns a (token, kv head, position) beside bf16 in the same run: decode from memory
// 11 (bf16 19), that is 12 GB/s; decode from cache 6.8 (6.2); prefill 2.5 (1.4). In a step of SmolLM2-135M, 32 sequences of
// 512 tokens: 13 (13), and half the time in kv_write: the halved bytes do not show there yet.
#pragma once

#include "attention_amx.hpp"
#include "attention_rows.hpp"
#include "kv_int8.hpp"

namespace ridgeline::RL_TIER {

#if defined(__AMX_TILE__)

inline constexpr int64_t kTileTokens = 64;

// Rows of 16-bit numbers as two planes of bytes, and what they are multiples of.
struct BytePlanes {
    uint8_t* high;  // [kTileRows][kAttentionChunk]
    uint8_t* low;
    float* scale;   // [kTileRows]
};

inline constexpr int64_t kPlaneBytes = kTileRows * kAttentionChunk;

// Scratch of one tile's products, besides the scores: 48 KiB, half of it touched with 16 rows or fewer.
struct ByteTileBuffers {
    BytePlanes rows;       // queries, kept for all chunks
    BytePlanes shares;     // probabilities times V scales
    int32_t* products;     // [2 columns in turn][2 planes][kTileRows][16]
    uint8_t* value_tiles;  // [2][4] tiles
};

inline constexpr int64_t kColumnInts = 2 * kTileRows * 16;  // two planes of products with 16 tokens or dims
inline constexpr int64_t kByteTileFloats = kPlaneBytes + 2 * kTileRows + 2 * kColumnInts + 8 * kTileBytes / 4;

static ByteTileBuffers byte_tile_buffers(float* from) {
    uint8_t* at = reinterpret_cast<uint8_t*>(from);
    const auto take = [&](int64_t bytes) { return (at += bytes) - bytes; };
    ByteTileBuffers buffers = {};
    buffers.products = reinterpret_cast<int32_t*>(take(2 * kColumnInts * 4));
    buffers.value_tiles = take(8 * kTileBytes);
    for (BytePlanes* planes : {&buffers.rows, &buffers.shares}) {
        planes->high = take(kPlaneBytes);
        planes->low = take(kPlaneBytes);
        planes->scale = reinterpret_cast<float*>(take(kTileRows * 4));
    }
    return buffers;
}

RL_INLINE void store_bytes(uint8_t* to, VecInt value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)value));
}

// A query row, rotated and scaled: x = scale * (256 high + low), bytes signed.
static void split_query(const float* x, int64_t head_dim, const BytePlanes& planes, int64_t row) {
    Vec lanes = zero(), poison = zero();
    for (int64_t d = 0; d < head_dim; d += kLanes) {
        lanes = max(abs(load(x + d)), lanes);
        poison = fma(load(x + d), zero(), poison);
    }
    const float largest = reduce_max(lanes) + reduce_add(poison), steps = 127.0f * 256.0f;
    const Vec inverse = splat(largest > 1e-30f ? steps / largest : 0.0f);
    for (int64_t d = 0; d < head_dim; d += kLanes) {
        const VecInt value = to_int(round_nearest(load(x + d) * inverse));
        const VecInt high = (value + 128) >> 8;
        store_bytes(planes.high + row * kAttentionChunk + d, high);
        store_bytes(planes.low + row * kAttentionChunk + d, value - (high << 8));
    }
    planes.scale[row] = largest / steps;
}

// The scores of one row become shares, as `planes` say, of 2^(score - maximum) times V scales; zero outside of `visible` in the whole
// tiles that `computed` touches. Returns the sum of the powers.
static float split_shares(float* scores, float maximum, Span computed, Span visible, const float* value_scales,
                          const BytePlanes& planes, int64_t row) {
    uint8_t* high = planes.high + row * kAttentionChunk;
    uint8_t* low = planes.low + row * kAttentionChunk;
    for (int64_t at = computed.begin / kTileTokens * kTileTokens; at < computed.end; at += kTileTokens) {
        std::memset(high + at, 0, kTileTokens);
        std::memset(low + at, 0, kTileTokens);
    }
    Vec sum = zero(), largest_lanes = zero(), poison = zero();
    const Vec shift = splat(maximum);
    for_each_visible(visible, [&](int64_t at, bool is_edge) {
        Vec p = exp2_within(max(splat(-126.0f), load(scores + at) - shift));
        Vec share = p * load(value_scales + at);
        if (is_edge) {
            p = select(lanes_within(at, visible), p, zero());
            share = select(lanes_within(at, visible), share, zero());
        }
        sum += p;
        largest_lanes = max(share, largest_lanes);
        poison = fma(share, zero(), poison);
        store(scores + at, share);
    });
    const float largest = reduce_max(largest_lanes) + reduce_add(poison);
    const Vec inverse = splat(largest > 1e-30f ? 65535.0f / largest : 0.0f);
    for_each_visible(visible, [&](int64_t at, bool) {
        const VecInt value = to_int(round_nearest(load(scores + at) * inverse));
        store_bytes(high + at, value >> 8);
        store_bytes(low + at, value);
    });
    planes.scale[row] = largest / 65535.0f;
    return reduce_add(sum);
}

// Tile registers: 0..3 accumulators (row tile, plane), 4 and 5 the planes of a row tile, 6 the tile of the cache.
template <int M, bool is_signed>
RL_INLINE void multiply_byte_tiles(const BytePlanes& rows, int64_t at, const uint8_t* tile) {
    _tile_loadd(6, tile, 64);
    _tile_loadd(4, rows.high + at, kAttentionChunk);
    _tile_loadd(5, rows.low + at, kAttentionChunk);
    if constexpr (is_signed) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 5, 6);
    } else {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 5, 6);
    }
    if constexpr (M == 2) {
        _tile_loadd(4, rows.high + at + 16 * kAttentionChunk, kAttentionChunk);
        _tile_loadd(5, rows.low + at + 16 * kAttentionChunk, kAttentionChunk);
        if constexpr (is_signed) {
            _tile_dpbssd(2, 4, 6);
            _tile_dpbssd(3, 5, 6);
        } else {
            _tile_dpbusd(2, 4, 6);
            _tile_dpbusd(3, 5, 6);
        }
    }
}

template <int M>
RL_INLINE void store_byte_tiles(const ByteTileBuffers& buffers, int64_t column) {
    int32_t* to = buffers.products + column % 2 * kColumnInts;
    _tile_stored(0, to, 64);
    _tile_stored(1, to + kTileRows * 16, 64);
    if constexpr (M == 2) {
        _tile_stored(2, to + 16 * 16, 64);
        _tile_stored(3, to + kTileRows * 16 + 16 * 16, 64);
    }
}

// 256 high + low of a row's products.
RL_INLINE Vec joined(const ByteTileBuffers& buffers, int64_t column, int64_t row) {
    const int32_t* from = buffers.products + column % 2 * kColumnInts + row * 16;
    VecInt high, low;
    std::memcpy(&high, from, sizeof high);
    std::memcpy(&low, from + kTileRows * 16, sizeof low);
    return fma(to_float(high), splat(256.0f), to_float(low));
}

RL_INLINE void finish_scores(const ByteTileBuffers& buffers, int64_t num_rows, int64_t group, const float* scales, float* scores) {
    const Vec key_scale = load(scales + group * kGroupTokens);
    for (int64_t row = 0; row < num_rows; ++row)
        store(scores + row * kAttentionChunk + group * kGroupTokens,
              joined(buffers, group, row) * (key_scale * splat(buffers.rows.scale[row])));
}

RL_INLINE void finish_values(const ByteTileBuffers& buffers, int64_t num_rows, int64_t dims, int64_t head_dim, float* values) {
    for (int64_t row = 0; row < num_rows; ++row)
        store(values + row * head_dim + dims * 16, joined(buffers, dims, row) * splat(buffers.shares.scale[row]));
}

template <int M>
static void scores_by_byte_tiles(const ByteTileBuffers& buffers, int64_t num_rows, const ChunkTiles& tiles, Span computed,
                                 const float* scales, float* scores) {
    const int64_t first = computed.begin / kGroupTokens, end = computed.end / kGroupTokens;
    for (int64_t group = first; group < end; ++group) {
        zero_tiles<2>();
        for (int64_t depth = 0; depth < tiles.head_dim / 64; ++depth) {
            for (int64_t line = 0; M == 1 && line < 16; ++line)
                prefetch(tiles.values[group] + (4 * depth + line / 4) * tiles.dims_stride + line % 4 * 64);
            multiply_byte_tiles<M, true>(buffers.rows, depth * 64, tiles.keys[group] + depth * kTileBytes);
        }
        store_byte_tiles<M>(buffers, group);
        if (group > first) finish_scores(buffers, num_rows, group - 1, scales, scores);
    }
    finish_scores(buffers, num_rows, end - 1, scales, scores);
}

// The lines of 64 tokens and 16 dims together. Tokens beyond the computed span have shares of zero: any bytes will do.
RL_INLINE void gather_value_tile(const ChunkTiles& tiles, int64_t first_group, int64_t dims, uint8_t* to) {
    for (int64_t i = 0; i < 4; ++i) {
        const uint8_t* lines = tiles.values[first_group + i];
        if (lines != nullptr) std::memcpy(to + i * 256, lines + dims * tiles.dims_stride, 256);
    }
}

template <int M>
static void values_by_byte_tiles(const ByteTileBuffers& buffers, int64_t num_rows, const ChunkTiles& tiles, const ChunkTiles* next,
                                 Span computed, float* values) {
    for (int64_t dims = 0; dims < tiles.head_dim / 16; ++dims) {
        zero_tiles<2>();
        for (int64_t at = computed.begin / kTileTokens * kTileTokens; at < computed.end; at += kTileTokens) {
            uint8_t* tile = buffers.value_tiles + (dims % 2 * 4 + at / kTileTokens) * kTileBytes;
            gather_value_tile(tiles, at / kGroupTokens, dims, tile);
            for (int64_t i = 0; M == 1 && next != nullptr && i < 4; ++i) {
                const uint8_t* ahead = next->keys[at / kGroupTokens + i];
                for (int64_t line = 0; ahead != nullptr && line < 4; ++line) prefetch(ahead + (4 * dims + line) * 64);
            }
            multiply_byte_tiles<M, false>(buffers.shares, at, tile);
        }
        store_byte_tiles<M>(buffers, dims);
        if (dims > 0) finish_values(buffers, num_rows, dims - 1, tiles.head_dim, values);
    }
    finish_values(buffers, num_rows, tiles.head_dim / 16 - 1, tiles.head_dim, values);
}

#endif

RL_INLINE bool fits_byte_tiles(const KvLayer& layer) {
#if defined(__AMX_TILE__)
    return layer.is_int8 && layer.head_dim % 64 == 0 && layer.head_dim <= kAttentionChunk;
#else
    (void)layer;
    return false;
#endif
}

}  // namespace ridgeline::RL_TIER
