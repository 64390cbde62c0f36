// How a step's attention is cut into items: a query tile of one kv head.
//
// All heads of a group read the same keys, so a tile packs up to kTileRows query rows of one kv head, tokens x heads:
//
//   row   0        1        2        3        4      ...
//         t0 h0    t0 h1    t0 h2    t1 h0    t1 h1  ...        group of 3: 10 tokens, 30 rows
//
// Decode is a tile with one token. A group of more than kTileRows heads is cut into equal slices. Items are
// numbered slice by slice (so that consecutive items share keys), then request, then token.
#pragma once

#include "attention_args.hpp"
#include "simd.hpp"

namespace ridgeline::RL_TIER {

inline constexpr int64_t kTileRows = 32;

struct TilePlan {
    int64_t heads_per_tile;
    int64_t slices_per_group;
    int64_t tokens_per_tile;
    int64_t tiles_per_slice;
    int64_t num_items;
};

struct QueryTile {
    int64_t request;
    int64_t token;       // first, in the step
    int64_t position;    // of that token
    int64_t num_tokens;
    int64_t first_head;  // of the model
    int64_t kv_head;
};

RL_INLINE int64_t num_tokens_of(const StepRows& rows, int64_t request) {
    return rows.row_starts[request + 1] - rows.row_starts[request];
}

RL_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Heads of a group that share a tile: the largest divisor of the group that fits.
RL_INLINE int64_t heads_per_tile(int64_t group) {
    int64_t heads = group < kTileRows ? group : kTileRows;
    while (group % heads != 0) --heads;
    return heads;
}

static TilePlan plan_tiles(const AttentionArgs& args) {
    const int64_t group = args.num_heads / args.layer.num_kv_heads;
    TilePlan plan = {};
    plan.heads_per_tile = heads_per_tile(group);
    plan.slices_per_group = group / plan.heads_per_tile;
    plan.tokens_per_tile = kTileRows / plan.heads_per_tile;
    for (int64_t request = 0; request < args.rows.num_requests; ++request)
        plan.tiles_per_slice += divide_up(num_tokens_of(args.rows, request), plan.tokens_per_tile);
    plan.num_items = plan.tiles_per_slice * plan.slices_per_group * args.layer.num_kv_heads;
    return plan;
}

// Finds items by number; cheap as long as the numbers ascend.
struct TileCursor {
    int64_t slice = -1;
    int64_t request = 0;
    int64_t first_tile = 0;  // of the request, in the slice
};

static QueryTile find_tile(const AttentionArgs& args, const TilePlan& plan, TileCursor& cursor, int64_t item) {
    const int64_t slice = item / plan.tiles_per_slice;
    const int64_t tile = item % plan.tiles_per_slice;
    if (slice != cursor.slice || tile < cursor.first_tile) cursor = {slice, 0, 0};
    for (;;) {
        const int64_t tiles = divide_up(num_tokens_of(args.rows, cursor.request), plan.tokens_per_tile);
        if (tile < cursor.first_tile + tiles) break;
        cursor.first_tile += tiles;
        ++cursor.request;
    }
    const int64_t first = (tile - cursor.first_tile) * plan.tokens_per_tile;
    const int64_t rest = num_tokens_of(args.rows, cursor.request) - first;
    return {
        .request = cursor.request,
        .token = args.rows.row_starts[cursor.request] + first,
        .position = args.rows.context_before[cursor.request] + first,
        .num_tokens = rest < plan.tokens_per_tile ? rest : plan.tokens_per_tile,
        .first_head = slice * plan.heads_per_tile,
        .kv_head = slice / plan.slices_per_group,
    };
}

}  // namespace ridgeline::RL_TIER
