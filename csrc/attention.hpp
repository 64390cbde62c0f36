// Paged causal attention over one ragged step: prefill chunks and decode rows alike, grouped queries, windows, soft cap.
//
//   for each query tile (attention_rows.hpp)             up to 32 rows: tokens x heads of one kv head
//     for each chunk of 256 positions that it sees
//       S = Q K^T        attention_amx.hpp where tiles fit, else attention_dot.hpp
//       P, m, l          attention_softmax.hpp, row by row, in place of S
//       T = P V
//       merge (m, l, T)  in order of position
//
// A row's operations are the same whoever shares its tile, its step or its thread: chunks are counted from position 0, rows of a
// product are independent, and what a row may not see has probability exactly 0. Hence also two ways to deal out the work with the
// same bits: a tile to a thread, or, for few tiles over long contexts, a (tile, chunk) to a thread and a merge after it.
//
// Floor: decode reads 4 * head_dim bytes a position and kv head; prefill does 4 * head_dim flops a (query head, position) pair
// beside some 13 / kLanes vector instructions of softmax.
#pragma once

#include "attention_amx.hpp"
#include "attention_amx_int8.hpp"
#include "attention_args.hpp"
#include "attention_dot.hpp"
#include "attention_rows.hpp"
#include "attention_softmax.hpp"
#include "kv_cache.hpp"
#include "kv_int8.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"

namespace ridgeline::RL_TIER {

// What a thread needs to attend one tile, cut from its scratch.
struct TileBuffers {
    uint16_t* queries;           // [kTileRows][head_dim] bf16
    float* scores;               // [kTileRows][kAttentionChunk]
    float* chunk_values;         // [kTileRows][head_dim]
    ChunkSoftmax* chunk_softmax;  // [kTileRows]
    float* values;               // as the two above, merged
    ChunkSoftmax* softmax;
    float* key_scales;    // [kAttentionChunk] each; the three below only where the cache is int8
    float* value_scales;
    uint8_t* expanded;    // [kAttentionChunk][head_dim] bf16: first keys, then values
#if defined(__AMX_TILE__)
    ByteTileBuffers bytes;  // instead of `queries` and `expanded`, where fits_byte_tiles
#endif
};

RL_INLINE int64_t values_floats(int64_t head_dim) { return kTileRows * head_dim; }

// A chunk's (m, l) of each row and T, as one run of floats.
RL_INLINE int64_t partial_floats(int64_t head_dim) { return 2 * kTileRows + values_floats(head_dim); }

static TileBuffers tile_buffers(Team& team, const KvLayer& layer) {
    const int64_t head_dim = layer.head_dim;
    int64_t expanded_floats = layer.is_int8 ? kAttentionChunk * (2 + head_dim / 2) : 0;
#if defined(__AMX_TILE__)
    if (fits_byte_tiles(layer)) expanded_floats = 2 * kAttentionChunk + kByteTileFloats;
#endif
    const int64_t num_floats = values_floats(head_dim) / 2 + kTileRows * kAttentionChunk + 2 * partial_floats(head_dim) + expanded_floats;
    float* at = static_cast<float*>(team.scratch(static_cast<size_t>(num_floats) * sizeof(float)));
    TileBuffers buffers = {};
    buffers.scores = at;
    at += kTileRows * kAttentionChunk;
    buffers.queries = reinterpret_cast<uint16_t*>(at);
    at += values_floats(head_dim) / 2;
    buffers.chunk_softmax = reinterpret_cast<ChunkSoftmax*>(at);
    buffers.chunk_values = at + 2 * kTileRows;
    at += partial_floats(head_dim);
    buffers.softmax = reinterpret_cast<ChunkSoftmax*>(at);
    buffers.values = at + 2 * kTileRows;
    at += partial_floats(head_dim);
    buffers.key_scales = at;
    buffers.value_scales = at + kAttentionChunk;
    buffers.expanded = reinterpret_cast<uint8_t*>(at + 2 * kAttentionChunk);
#if defined(__AMX_TILE__)
    if (fits_byte_tiles(layer)) buffers.bytes = byte_tile_buffers(at + 2 * kAttentionChunk);
#endif
    return buffers;
}

// AMX tiles are 32 deep; other shapes use dot products.
RL_INLINE bool fits_tiles(const KvLayer& layer) {
#if defined(__AMX_TILE__)
    return layer.head_dim % 32 == 0 && layer.block_size % 32 == 0;
#else
    (void)layer;
    return false;
#endif
}

RL_INLINE int64_t clamp_to_chunk(int64_t position, int64_t chunk) {
    const int64_t at = position - chunk * kAttentionChunk;
    return at < 0 ? 0 : at > kAttentionChunk ? kAttentionChunk : at;
}

RL_INLINE int64_t first_visible(const AttentionArgs& args, int64_t position) {
    return args.window > 0 && position >= args.window ? position - args.window + 1 : 0;
}

// What the token at `position` sees of a chunk.
RL_INLINE Span visible_span(const AttentionArgs& args, int64_t position, int64_t chunk) {
    return {clamp_to_chunk(first_visible(args, position), chunk), clamp_to_chunk(position + 1, chunk)};
}

// What any row of the tile sees of a chunk, in whole groups of tokens. Blocks outside it are never touched: a window's are freed.
RL_INLINE Span computed_span(const AttentionArgs& args, const QueryTile& tile, int64_t chunk) {
    const int64_t unit = fits_tiles(args.layer) ? 32 : kGroupTokens;
    const int64_t begin = clamp_to_chunk(first_visible(args, tile.position), chunk);
    const int64_t end = clamp_to_chunk(tile.position + tile.num_tokens, chunk);
    return {begin / unit * unit, divide_up(end, unit) * unit};
}

struct ChunkRange {
    int64_t first;
    int64_t end;
};

RL_INLINE ChunkRange chunks_of(const AttentionArgs& args, const QueryTile& tile) {
    return {first_visible(args, tile.position) / kAttentionChunk,
            divide_up(tile.position + tile.num_tokens, kAttentionChunk)};
}

static void find_chunk(const AttentionArgs& args, const QueryTile& tile, int64_t chunk, ChunkTiles& found) {
    const KvLayer& layer = args.layer;
    const Span computed = computed_span(args, tile, chunk);
    found = {};
    found.head_dim = layer.head_dim;
    const int64_t element = layer.is_int8 ? 1 : 2;
    found.dims_stride = layer.block_size * 16 * element;
    for (int64_t at = computed.begin; at < computed.end; at += kGroupTokens) {
        const int64_t position = chunk * kAttentionChunk + at;
        const int64_t block = block_of(args.rows, tile.request, position / layer.block_size);
        const int64_t offset = position % layer.block_size;
        found.keys[at / kGroupTokens] = key_part(layer, block, tile.kv_head) + offset * layer.head_dim * element;
        found.values[at / kGroupTokens] = value_part(layer, block, tile.kv_head) + offset * 16 * element;
        if (!layer.is_int8) continue;
        found.key_scales[at / kGroupTokens] = key_scales(layer, block, tile.kv_head) + offset;
        found.value_scales[at / kGroupTokens] = value_scales(layer, block, tile.kv_head) + offset;
    }
}

// Rows of the tile, scaled so that scores come out in units of log 2 (unless a cap must see them first).
static void load_queries(const AttentionArgs& args, const TilePlan& plan, const QueryTile& tile, const TileBuffers& buffers) {
    const int64_t head_dim = args.layer.head_dim;
    const Vec scale = splat(args.softcap > 0 ? args.scale : args.scale * 1.44269504f);
    for (int64_t row = 0; row < tile.num_tokens * plan.heads_per_tile; ++row) {
        const int64_t token = tile.token + row / plan.heads_per_tile;
        const int64_t head = tile.first_head + row % plan.heads_per_tile;
        const float* from = args.q + token * args.q_stride + head * head_dim;
        float scaled[kMaxHeadDim];
        for (int64_t d = 0; d < head_dim; d += kLanes) store(scaled + d, load(from + d) * scale);
        if (args.layer.is_int8) rotate_by_hadamard(scaled, head_dim);
#if defined(__AMX_TILE__)
        if (fits_byte_tiles(args.layer)) {
            split_query(scaled, head_dim, buffers.bytes.rows, row);
            continue;
        }
#endif
        for (int64_t d = 0; d < head_dim; d += kLanes) store_bf16(buffers.queries + row * head_dim + d, load(scaled + d));
    }
}

static void chunk_scores(const KvLayer& layer, int64_t num_rows, const ChunkTiles& tiles, Span computed,
                         const TileBuffers& buffers) {
#if defined(__AMX_TILE__)
    if (fits_byte_tiles(layer)) {
        if (num_rows <= 16) return scores_by_byte_tiles<1>(buffers.bytes, num_rows, tiles, computed, buffers.key_scales, buffers.scores);
        return scores_by_byte_tiles<2>(buffers.bytes, num_rows, tiles, computed, buffers.key_scales, buffers.scores);
    }
    if (fits_tiles(layer)) {
        if (num_rows <= 16) return scores_by_tiles<1>(buffers.queries, tiles, computed, buffers.scores);
        return scores_by_tiles<2>(buffers.queries, tiles, computed, buffers.scores);
    }
#endif
    (void)layer;
    scores_by_dots(buffers.queries, num_rows, tiles, computed, buffers.scores);
}

static void chunk_values(const KvLayer& layer, int64_t num_rows, const ChunkTiles& tiles, const ChunkTiles* next, Span computed,
                         const TileBuffers& buffers) {
#if defined(__AMX_TILE__)
    if (fits_byte_tiles(layer)) {
        if (num_rows <= 16) return values_by_byte_tiles<1>(buffers.bytes, num_rows, tiles, next, computed, buffers.chunk_values);
        return values_by_byte_tiles<2>(buffers.bytes, num_rows, tiles, next, computed, buffers.chunk_values);
    }
    if (fits_tiles(layer)) {
        if (num_rows <= 16) return values_by_tiles<1>(buffers.scores, tiles, next, computed, buffers.chunk_values);
        return values_by_tiles<2>(buffers.scores, tiles, next, computed, buffers.chunk_values);
    }
#endif
    (void)layer;
    (void)next;
    values_by_dots(buffers.scores, num_rows, tiles, computed, buffers.chunk_values);
}

// Probabilities of all rows of a chunk, in place of their scores. The maxima come first, in a loop of their own, so that a row's
// exponentials need not wait for its horizontal maximum.
static void chunk_softmax(const AttentionArgs& args, const TilePlan& plan, const QueryTile& tile, int64_t chunk, Span computed,
                          const TileBuffers& buffers) {
    const int64_t num_rows = tile.num_tokens * plan.heads_per_tile;
    Span visible[kTileRows];
    for (int64_t row = 0; row < num_rows; ++row) {
        visible[row] = visible_span(args, tile.position + row / plan.heads_per_tile, chunk);
        buffers.chunk_softmax[row] = {0.0f, 0.0f};
        if (visible[row].begin >= visible[row].end) continue;
        float* scores = buffers.scores + row * kAttentionChunk;
        if (args.layer.is_int8 && !fits_byte_tiles(args.layer)) scale_scores(scores, visible[row], buffers.key_scales);
        if (args.softcap > 0) cap_scores(scores, visible[row], args.softcap);
        buffers.chunk_softmax[row].maximum = largest_score(scores, visible[row]);
    }
    for (int64_t row = 0; row < num_rows; ++row) {
        if (visible[row].begin >= visible[row].end) continue;
        ChunkSoftmax& softmax = buffers.chunk_softmax[row];
        float* scores = buffers.scores + row * kAttentionChunk;
#if defined(__AMX_TILE__)
        if (fits_byte_tiles(args.layer)) {
            softmax.sum = split_shares(scores, softmax.maximum, computed, visible[row], buffers.value_scales, buffers.bytes.shares, row);
            continue;
        }
#endif
        if (args.layer.is_int8)
            softmax.sum = exponentiate_in_place(scores, softmax.maximum, computed, visible[row],
                                                [&](int64_t at, Vec p) { return p * load(buffers.value_scales + at); });
        else
            softmax.sum = exponentiate_in_place(scores, softmax.maximum, computed, visible[row], [](int64_t, Vec p) { return p; });
    }
}

// One chunk of one tile: (m, l) to buffers.chunk_softmax, T to buffers.chunk_values.
static void attend_chunk(const AttentionArgs& args, const TilePlan& plan, const QueryTile& tile, int64_t chunk,
                         const ChunkTiles& tiles, const ChunkTiles* next, const TileBuffers& buffers) {
    const int64_t num_rows = tile.num_tokens * plan.heads_per_tile;
    const Span computed = computed_span(args, tile, chunk);
    if (args.layer.is_int8)
        load_scales(tiles, next, computed, fits_byte_tiles(args.layer) ? 1.0f : kUnexpand, buffers.key_scales, buffers.value_scales);
    if (args.layer.is_int8 && !fits_byte_tiles(args.layer)) {
        chunk_scores(args.layer, num_rows, expand_keys(tiles, computed, buffers.expanded), computed, buffers);
        chunk_softmax(args, plan, tile, chunk, computed, buffers);
        chunk_values(args.layer, num_rows, expand_values(tiles, next, computed, buffers.expanded), nullptr, computed, buffers);
    } else {
        chunk_scores(args.layer, num_rows, tiles, computed, buffers);
        chunk_softmax(args, plan, tile, chunk, computed, buffers);
        chunk_values(args.layer, num_rows, tiles, next, computed, buffers);
    }
}

static void start_rows(int64_t num_rows, int64_t head_dim, const TileBuffers& buffers) {
    for (int64_t row = 0; row < num_rows; ++row) buffers.softmax[row] = {-__builtin_inff(), 0.0f};
    std::memset(buffers.values, 0, static_cast<size_t>(num_rows * head_dim) * sizeof(float));
}

static void merge_rows(int64_t num_rows, int64_t head_dim, const TileBuffers& buffers) {
    for (int64_t row = 0; row < num_rows; ++row)
        merge_chunk(buffers.softmax[row], buffers.values + row * head_dim, buffers.chunk_softmax[row],
                    buffers.chunk_values + row * head_dim, head_dim);
}

static void store_rows(const AttentionArgs& args, const TilePlan& plan, const QueryTile& tile, const TileBuffers& buffers) {
    const int64_t head_dim = args.layer.head_dim;
    for (int64_t row = 0; row < tile.num_tokens * plan.heads_per_tile; ++row) {
        const int64_t token = tile.token + row / plan.heads_per_tile;
        const int64_t head = tile.first_head + row % plan.heads_per_tile;
        float* to = args.y + token * args.y_stride + head * head_dim;
        const Vec inverse = splat(1.0f / buffers.softmax[row].sum);
        for (int64_t d = 0; d < head_dim; d += kLanes) store(to + d, load(buffers.values + row * head_dim + d) * inverse);
    }
}

// `tiles` is the tile's first chunk, and becomes the first one of `after`, the tile that this thread attends next (null: none).
static void attend_tile(const AttentionArgs& args, const TilePlan& plan, const QueryTile& tile, const QueryTile* after,
                        ChunkTiles& tiles, const TileBuffers& buffers) {
    const int64_t num_rows = tile.num_tokens * plan.heads_per_tile;
    const int64_t head_dim = args.layer.head_dim;
    const ChunkRange chunks = chunks_of(args, tile);
    load_queries(args, plan, tile, buffers);
    start_rows(num_rows, head_dim, buffers);
    for (int64_t chunk = chunks.first; chunk < chunks.end; ++chunk) {
        ChunkTiles next = {};
        const bool is_last = chunk + 1 == chunks.end;
        if (!is_last)
            find_chunk(args, tile, chunk + 1, next);
        else if (after != nullptr)
            find_chunk(args, *after, chunks_of(args, *after).first, next);
        attend_chunk(args, plan, tile, chunk, tiles, is_last && after == nullptr ? nullptr : &next, buffers);
        merge_rows(num_rows, head_dim, buffers);
        tiles = next;
    }
    store_rows(args, plan, tile, buffers);
}

// ---- A tile to a thread, dealt out as threads become free ----

static void attend_by_tiles(const AttentionArgs& args, const TilePlan& plan, Team& team) {
    if (team.num_threads > 1) {
        if (team.thread == 0) team.reset_counter();
        team.barrier();
    } else {
        team.reset_counter();
    }
    const TileBuffers buffers = tile_buffers(team, args.layer);
    TileCursor cursor;
    int64_t item = team.next_item();
    if (item >= plan.num_items) return;
    QueryTile tile = find_tile(args, plan, cursor, item);
    ChunkTiles tiles = {};
    find_chunk(args, tile, chunks_of(args, tile).first, tiles);
    while (item < plan.num_items) {
        item = team.next_item();
        const bool more = item < plan.num_items;
        const QueryTile after = more ? find_tile(args, plan, cursor, item) : tile;
        attend_tile(args, plan, tile, more ? &after : nullptr, tiles, buffers);
        tile = after;
    }
}

// ---- A (tile, chunk) to a thread: unit u is chunk u % chunks_per_tile (from the tile's first) of tile u / chunks_per_tile ----

RL_INLINE int64_t max_chunks_per_tile(const AttentionArgs& args) {
    int64_t longest = 0;
    for (int64_t request = 0; request < args.rows.num_requests; ++request) {
        const int64_t context = args.rows.context_before[request] + num_tokens_of(args.rows, request);
        if (context > longest) longest = context;
    }
    return divide_up(longest, kAttentionChunk);
}

// The unit's results go to the workspace instead of the thread's scratch.
RL_INLINE TileBuffers with_partial(TileBuffers buffers, const AttentionArgs& args, int64_t unit) {
    float* partial = args.workspace + unit * partial_floats(args.layer.head_dim);
    buffers.chunk_softmax = reinterpret_cast<ChunkSoftmax*>(partial);
    buffers.chunk_values = partial + 2 * kTileRows;
    return buffers;
}

static void attend_by_chunks(const AttentionArgs& args, const TilePlan& plan, int64_t chunks_per_tile, Team& team) {
    const TileBuffers buffers = tile_buffers(team, args.layer);
    TileCursor cursor;
    const Range units = team.share(plan.num_items * chunks_per_tile);
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
        const QueryTile tile = find_tile(args, plan, cursor, unit / chunks_per_tile);
        const ChunkRange chunks = chunks_of(args, tile);
        const int64_t chunk = chunks.first + unit % chunks_per_tile;
        if (chunk >= chunks.end) continue;
        ChunkTiles tiles[2];
        const bool more = chunk + 1 < chunks.end && unit + 1 < units.end;
        find_chunk(args, tile, chunk, tiles[0]);
        if (more) find_chunk(args, tile, chunk + 1, tiles[1]);
        load_queries(args, plan, tile, buffers);
        attend_chunk(args, plan, tile, chunk, tiles[0], more ? &tiles[1] : nullptr, with_partial(buffers, args, unit));
    }
    team.barrier();
    const Range items = team.share(plan.num_items);
    for (int64_t item = items.begin; item < items.end; ++item) {
        const QueryTile tile = find_tile(args, plan, cursor, item);
        const ChunkRange chunks = chunks_of(args, tile);
        const int64_t num_rows = tile.num_tokens * plan.heads_per_tile;
        start_rows(num_rows, args.layer.head_dim, buffers);
        for (int64_t chunk = chunks.first; chunk < chunks.end; ++chunk) {
            const int64_t unit = item * chunks_per_tile + chunk - chunks.first;
            merge_rows(num_rows, args.layer.head_dim, with_partial(buffers, args, unit));
        }
        store_rows(args, plan, tile, buffers);
    }
}

static void attention(const AttentionArgs& args, Team& team) {
    const TilePlan plan = plan_tiles(args);
    if (plan.num_items == 0) return;
    const int64_t chunks_per_tile = max_chunks_per_tile(args);
    const int64_t needed = plan.num_items * chunks_per_tile * partial_floats(args.layer.head_dim);
    const bool few_tiles = plan.num_items < 4 * team.num_threads && chunks_per_tile > 1;
    if (team.num_threads > 1 && few_tiles && args.workspace != nullptr && needed <= args.workspace_floats)
        attend_by_chunks(args, plan, chunks_per_tile, team);
    else
        attend_by_tiles(args, plan, team);
}

}  // namespace ridgeline::RL_TIER
