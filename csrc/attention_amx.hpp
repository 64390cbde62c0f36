// The two products of attention over one chunk on AMX tiles: S = Q K^T and T = P V (operands as in attention_dot.hpp).
//
// Blocks of 2 x 2 accumulator tiles: two tiles of 16 query rows against two tiles of 16 tokens (S) or dims (T), each step 32 deep.
// With 16 rows or fewer (decode) it is 1 x 2, bound by the bytes of K and V: while K is read the V of the same
// tokens is prefetched, and while V is read the K of the next chunk.
// Needs head_dim and block_size to be multiples of 32. Rows beyond the data are computed and dropped: tile rows are
// independent. Floor: 1024 flops a cycle; 16 cycles a tile product.
#pragma once

#include "attention_dot.hpp"

#if defined(__AMX_TILE__)

namespace ridgeline::RL_TIER {

inline constexpr int64_t kTileBytes = 1024;
inline constexpr int64_t kScoreRowBytes = kAttentionChunk * 4;

RL_INLINE void prefetch_tile(const uint8_t* tile) {
    for (int line = 0; line < 16; ++line) prefetch(tile + line * 64);
}

// Tile registers: 0..3 accumulators (row tile, column tile), 4 and 5 the row operand, 6 and 7 the column operand.
template <int M>
RL_INLINE void multiply_tiles(const uint8_t* rows, int64_t row_bytes, const uint8_t* left, const uint8_t* right) {
    _tile_loadd(4, rows, row_bytes);
    _tile_loadd(6, left, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (M == 2) {
        _tile_loadd(5, rows + 16 * row_bytes, row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

template <int M>
RL_INLINE void zero_tiles() {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (M == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
}

template <int M>
RL_INLINE void store_tiles(float* to, int64_t row_bytes) {
    _tile_stored(0, to, row_bytes);
    _tile_stored(1, to + 16, row_bytes);
    if constexpr (M == 2) {
        float* lower = to + 4 * row_bytes;  // 16 rows on
        _tile_stored(2, lower, row_bytes);
        _tile_stored(3, lower + 16, row_bytes);
    }
}

template <int M>
static void scores_by_tiles(const uint16_t* q, const ChunkTiles& tiles, Span computed, float* scores) {
    const uint8_t* rows = reinterpret_cast<const uint8_t*>(q);
    const int64_t end = computed.end / kGroupTokens;
    for (int64_t group = computed.begin / kGroupTokens; group < end; group += 2) {
        zero_tiles<M>();
        for (int64_t depth = 0; depth < tiles.head_dim / 32; ++depth) {
            if (M == 1 && tiles.values[group] != nullptr) {
                prefetch_tile(tiles.values[group] + 2 * depth * tiles.dims_stride);
                prefetch_tile(tiles.values[group] + (2 * depth + 1) * tiles.dims_stride);
            }
            multiply_tiles<M>(rows + depth * 64, tiles.head_dim * 2, tiles.keys[group] + depth * kTileBytes,
                              tiles.keys[group + 1] + depth * kTileBytes);
        }
        store_tiles<M>(scores + group * kGroupTokens, kScoreRowBytes);
    }
}

template <int M>
static void values_by_tiles(const float* probabilities, const ChunkTiles& tiles, const ChunkTiles* next, Span computed,
                            float* values) {
    const uint8_t* rows = reinterpret_cast<const uint8_t*>(probabilities);
    const int64_t end = computed.end / kGroupTokens;
    for (int64_t dims = 0; dims < tiles.head_dim / 16; dims += 2) {
        zero_tiles<M>();
        for (int64_t group = computed.begin / kGroupTokens; group < end; group += 2) {
            const uint8_t* value = tiles.values[group] + dims * tiles.dims_stride;
            if (M == 1 && next != nullptr && next->keys[group] != nullptr) {
                prefetch_tile(next->keys[group] + dims / 2 * kTileBytes);
                prefetch_tile(next->keys[group + 1] + dims / 2 * kTileBytes);
            }
            multiply_tiles<M>(rows + group * kGroupTokens * 2, kScoreRowBytes, value, value + tiles.dims_stride);
        }
        store_tiles<M>(values + dims * 16, tiles.head_dim * 4);
    }
}

}  // namespace ridgeline::RL_TIER

#endif
