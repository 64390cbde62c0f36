// Rows of a packed table as floats: the tied output head serves as the embedding, so its bytes are kept once.
#pragma once

#include <cstdint>

#include "linear_args.hpp"
#include "quantize_rows.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"

namespace ridgeline::RL_TIER {

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
    const uint8_t* lines = panel + tile * 1024 + column * 4;
    const float scale = w.scales[output] * factor;
    for (int64_t k = 0; k < w.num_inputs; ++k) {
        const uint8_t byte = lines[k / 64 * 2048 + k % 64 / 4 * 64 + k % 4];
        const int value = kWeightBias == 128 ? byte - 128 : static_cast<int8_t>(byte);
        y[k] = static_cast<float>(value) * scale;
    }
}

static void embed(const EmbedArgs& args, Team& team) {
    const Range rows = team.share(args.num_rows);
    for (int64_t r = rows.begin; r < rows.end; ++r)
        unpack_row(*args.table, args.token_ids[r], args.scale, args.y + r * args.y_stride);
}

}  // namespace ridgeline::RL_TIER
