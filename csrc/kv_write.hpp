// A step's keys and values go to the cache, token by token (layouts: kv_cache.hpp, kv_int8.hpp).
#pragma once

#include "attention_args.hpp"
#include "kv_cache.hpp"
#include "kv_int8.hpp"
#include "thread_pool.hpp"

namespace ridgeline::RL_TIER {

// All kv heads of token `token` of the step, which belongs to `request`. Any thread may write any token, in any order.
// The request's last token of the step also clears the rest of a block that it began.
static void write_kv_token(const KvWriteArgs& args, int64_t request, int64_t token) {
    const KvLayer& layer = args.layer;
    const int64_t first = args.rows.context_before[request];
    const int64_t position = first + token - args.rows.row_starts[request];
    const int64_t offset = position % layer.block_size;
    const int64_t block = block_of(args.rows, request, position / layer.block_size);
    const bool is_last = token + 1 == args.rows.row_starts[request + 1];
    const bool block_is_fresh = position - offset >= first;
    for (int64_t head = 0; head < layer.num_kv_heads; ++head) {
        const float* key = args.keys + token * args.key_stride + head * layer.head_dim;
        const float* value = args.values + token * args.value_stride + head * layer.head_dim;
        if (layer.is_int8) {
            write_key_bytes(layer, block, head, offset, key);
            write_value_bytes(layer, block, head, offset, value);
        } else {
            write_key(layer, block, head, offset, key);
            write_value(layer, block, head, offset, value);
            if (is_last && block_is_fresh) clear_value_tail(layer, block, head, offset + 1);
        }
    }
}

static void kv_write(const KvWriteArgs& args, Team& team) {
    const StepRows& rows = args.rows;
    const Range tokens = team.share(rows.row_starts[rows.num_requests]);
    int64_t request = 0;
    for (int64_t token = tokens.begin; token < tokens.end; ++token) {
        while (token >= rows.row_starts[request + 1]) ++request;
        write_kv_token(args, request, token);
    }
}

}  // namespace ridgeline::RL_TIER
