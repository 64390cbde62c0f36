// The two products of attention over one chunk, with vector dot products: S = Q K^T and T = P V.
//
//   Q  [rows][head_dim]            bf16, scaled            K, V  tiles as in kv_cache.hpp, one pointer per 16 tokens
//   S  [rows][kAttentionChunk]     float                   P     bf16 in the first half of each row of S
//   T  [rows][head_dim]            float
//
// R rows x J vectors of accumulators stay in registers while a line of K or V is used R times. Every accumulator adds in the order
// of dims (S) or tokens (T) whatever R and J are, so a row does not feel its neighbours.
// Floor: one dot_pairs (two flops a lane pair) per row, line and vector; for few rows, the bytes of K and V.
#pragma once

#include "attention_softmax.hpp"
#include "simd.hpp"

namespace ridgeline::RL_TIER {

inline constexpr int64_t kGroupTokens = 16;
inline constexpr int64_t kChunkGroups = kAttentionChunk / kGroupTokens;
inline constexpr int64_t kStripsPerLine = 16 / kLanes;  // vectors in a 64-byte line

// Where the 16-token groups of a chunk lie; only those of the computed span are set. (Of an int8 cache, first where its bytes
// lie, then where they were expanded to: kv_int8.hpp.)
struct ChunkTiles {
    const uint8_t* keys[kChunkGroups];    // [head_dim / 2][16][2] each
    const uint8_t* values[kChunkGroups];  // 8 lines, for each 16 dims `dims_stride` bytes apart
    const float* key_scales[kChunkGroups];    // of an int8 cache, [16] each
    const float* value_scales[kChunkGroups];
    int64_t dims_stride;
    int64_t head_dim;
};

RL_INLINE const uint16_t* strip_of_line(const uint8_t* line, int64_t strip) {
    return reinterpret_cast<const uint16_t*>(line + strip % kStripsPerLine * (kLanes * 4));
}

// Scores of R rows against J strips (of kLanes tokens) from `strip` on.
template <int R, int J>
RL_INLINE void score_block(const uint16_t* q, const ChunkTiles& tiles, int64_t strip, float* scores) {
    Vec acc[R][J] = {};
    const uint8_t* line[J];
    for (int j = 0; j < J; ++j) line[j] = tiles.keys[(strip + j) / kStripsPerLine];
    for (int64_t pair = 0; pair < tiles.head_dim / 2; ++pair) {
        VecBf16Pairs key[J];
        for (int j = 0; j < J; ++j) key[j] = load_pairs(strip_of_line(line[j] + pair * 64, strip + j));
        for (int r = 0; r < R; ++r) {
            const VecBf16Pairs query = splat_pair(q + r * tiles.head_dim + 2 * pair);
            for (int j = 0; j < J; ++j) acc[r][j] = dot_pairs(acc[r][j], key[j], query);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < J; ++j) store(scores + r * kAttentionChunk + (strip + j) * kLanes, acc[r][j]);
}

// Values of R rows for J strips (of kLanes dims) from `strip` on, over the tokens of `computed`.
template <int R, int J>
RL_INLINE void value_block(const float* probabilities, const ChunkTiles& tiles, Span computed, int64_t strip, float* values) {
    Vec acc[R][J] = {};
    for (int64_t group = computed.begin / kGroupTokens; group < computed.end / kGroupTokens; ++group) {
        const uint8_t* line[J];
        for (int j = 0; j < J; ++j) line[j] = tiles.values[group] + (strip + j) / kStripsPerLine * tiles.dims_stride;
        for (int64_t pair = 0; pair < kGroupTokens / 2; ++pair) {
            VecBf16Pairs value[J];
            for (int j = 0; j < J; ++j) value[j] = load_pairs(strip_of_line(line[j] + pair * 64, strip + j));
            for (int r = 0; r < R; ++r) {
                const uint16_t* row = reinterpret_cast<const uint16_t*>(probabilities + r * kAttentionChunk);
                const VecBf16Pairs p = splat_pair(row + group * kGroupTokens + 2 * pair);
                for (int j = 0; j < J; ++j) acc[r][j] = dot_pairs(acc[r][j], value[j], p);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < J; ++j) store(values + r * tiles.head_dim + (strip + j) * kLanes, acc[r][j]);
}

inline constexpr int kBlockStrips = kLanes == 16 ? 4 : 2;

template <int R>
static void score_rows(const uint16_t* q, const ChunkTiles& tiles, Span computed, float* scores) {
    int64_t strip = computed.begin / kLanes;
    const int64_t end = computed.end / kLanes;
    for (; strip + kBlockStrips <= end; strip += kBlockStrips) score_block<R, kBlockStrips>(q, tiles, strip, scores);
    for (; strip < end; ++strip) score_block<R, 1>(q, tiles, strip, scores);
}

template <int R>
static void value_rows(const float* probabilities, const ChunkTiles& tiles, Span computed, float* values) {
    int64_t strip = 0;
    const int64_t end = tiles.head_dim / kLanes;
    for (; strip + kBlockStrips <= end; strip += kBlockStrips)
        value_block<R, kBlockStrips>(probabilities, tiles, computed, strip, values);
    for (; strip < end; ++strip) value_block<R, 1>(probabilities, tiles, computed, strip, values);
}

static void scores_by_dots(const uint16_t* q, int64_t num_rows, const ChunkTiles& tiles, Span computed, float* scores) {
    for (int64_t row = 0; row < num_rows; row += 4) {
        const uint16_t* from = q + row * tiles.head_dim;
        float* to = scores + row * kAttentionChunk;
        switch (num_rows - row) {
            case 1: score_rows<1>(from, tiles, computed, to); break;
            case 2: score_rows<2>(from, tiles, computed, to); break;
            case 3: score_rows<3>(from, tiles, computed, to); break;
            default: score_rows<4>(from, tiles, computed, to);
        }
    }
}

static void values_by_dots(const float* probabilities, int64_t num_rows, const ChunkTiles& tiles, Span computed, float* values) {
    for (int64_t row = 0; row < num_rows; row += 4) {
        const float* from = probabilities + row * kAttentionChunk;
        float* to = values + row * tiles.head_dim;
        switch (num_rows - row) {
            case 1: value_rows<1>(from, tiles, computed, to); break;
            case 2: value_rows<2>(from, tiles, computed, to); break;
            case 3: value_rows<3>(from, tiles, computed, to); break;
            default: value_rows<4>(from, tiles, computed, to);
        }
    }
}

}  // namespace ridgeline::RL_TIER
