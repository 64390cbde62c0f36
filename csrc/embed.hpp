// Rows of a packed table as floats: the tied output head serves as the embedding, so its bytes are kept once.
#pragma once

#include <cstdint>

#include "linear_args.hpp"
#include "quantize_rows.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"

namespace ridgeline::RL_TIER {

// 32 inputs of one output (linear_args.hpp), `count` of which exist.
RL_INLINE void unpack_int8_group(const uint8_t* step, int64_t tile, int64_t column, float scale, int64_t count, float* y) {
    const int8_t* codes = reinterpret_cast<const int8_t*>(step) + tile * 512 + column * 4;
    int16_t slope;
    std::memcpy(&slope, step + 1024 + (tile * 16 + column) * 2, sizeof slope);
    const float d = scale * static_cast<float>(slope) * (1.0f / 32768.0f);
    for (int64_t k = 0; k < count; ++k) y[k] = d * static_cast<float>(codes[k / 4 * 64 + k % 4]);
}

RL_INLINE void unpack_int4_group(const uint8_t* step, int64_t tile, int64_t column, float scale, int64_t count, float* y) {
    const uint8_t* half = step + tile * 320;
    uint16_t pair[2];
    std::memcpy(pair, half + 256 + column * 4, sizeof pair);
    for (int64_t k = 0; k < count; ++k) {
        const int code = half[k % 16 / 4 * 64 + column * 4 + k % 4] >> (k < 16 ? 0 : 4) & 15;
        y[k] = scale * (1.0f / 256.0f) * static_cast<float>(pair[0] * code + pair[1] - 128 * 257);
    }
}

static void unpack_row(const PackedMatrix& w, int64_t output, float factor, float* y) {
    const uint8_t* panel = w.panels + output / 32 * w.panel_bytes;
    const int64_t tile = output % 32 / 16, column = output % 16;
    if (w.kind == WeightKind::kFloat32) {
        const float* line = reinterpret_cast<const float*>(panel) + output % 32;
        for (int64_t k = 0; k < w.num_inputs; ++k) y[k] = line[k * 32] * factor;
        return;
    }
    if (w.kind == WeightKind::kBf16) {
        const uint16_t* lines = reinterpret_cast<const uint16_t*>(panel + tile * 1024) + column * 2;
        for (int64_t k = 0; k < w.num_inputs; ++k)
            y[k] = bf16_to_float(lines[k / 32 * 1024 + k % 32 / 2 * 32 + k % 2]) * factor;
        return;
    }
    const float scale = w.scales[output] * factor;
    for (int64_t k = 0; k < w.num_inputs; k += 32) {
        const uint8_t* step = panel + k / 32 * step_bytes(w.kind);
        const int64_t count = w.num_inputs - k < 32 ? w.num_inputs - k : 32;
        if (w.kind == WeightKind::kInt8)
            unpack_int8_group(step, tile, column, scale, count, y + k);
        else
            unpack_int4_group(step, tile, column, scale, count, y + k);
    }
}

static void embed(const EmbedArgs& args, Team& team) {
    const Range rows = team.share(args.num_rows);
    for (int64_t r = rows.begin; r < rows.end; ++r)
        unpack_row(*args.table, args.token_ids[r], args.scale, args.y + r * args.y_stride);
}

}  // namespace ridgeline::RL_TIER
