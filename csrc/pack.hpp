// Rows of a file -> panels. Each thread takes panels, turns their 32 rows into floats and grids, and lays them out.
#pragma once

#include <cstdint>

#include "ggml_blocks.hpp"
#include "grids.hpp"
#include "linear_args.hpp"
#include "quantize_rows.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"

namespace ridgeline::RL_TIER {

static int64_t ggml_row_bytes(int32_t type, int64_t num_values) {
    const GgmlBlock block = ggml_block(static_cast<GgmlType>(type));
    if (block.elements == 0 || num_values % block.elements != 0) return -1;
    return num_values / block.elements * block.bytes;
}

static FileRow find_row(const PackArgs& args, int64_t row) {
    for (int64_t p = 0; p < args.num_parts; ++p) {
        const MatrixPart& part = args.parts[p];
        if (row < part.num_rows) {
            const int64_t stored = part.row_order != nullptr ? part.row_order[row] : row;
            return {part.data + stored * part.row_bytes, static_cast<GgmlType>(part.ggml_type)};
        }
        row -= part.num_rows;
    }
    return {nullptr, GgmlType::F32};
}

// Which row of the stack is output `column` of a panel; -1 beyond the matrix.
static int64_t row_of_output(const PackedMatrix& w, int64_t panel, int64_t column) {
    if (!w.gated) {
        const int64_t row = panel * 32 + column;
        return row < w.num_outputs ? row : -1;
    }
    const int64_t inner = w.num_outputs / 2;
    const int64_t row = panel * 16 + column % 16;
    return row < inner ? row + (column < 16 ? 0 : inner) : -1;
}

static void pack_bf16_column(const float* x, int64_t inputs, uint8_t* lines) {
    for (int64_t k = 0; k < inputs; k += 2) {
        const uint16_t pair[2] = {float_to_bf16(x[k]), float_to_bf16(x[k + 1])};
        std::memcpy(lines + k / 32 * 2048 + k % 32 / 2 * 64, pair, sizeof pair);
    }
}

RL_INLINE uint16_t to_uint16(float value) { return static_cast<uint16_t>(value < 0.0f ? 0.0f : value > 65535.0f ? 65535.0f : value + 0.5f); }

// One output's groups -> its codes and (A, B), such that A * code + B is w in 16 bits (linear_args.hpp) and never more.
// Returns the scale, which covers whole grids: a code that the row does not use must not push its group out of range.
static float pack_int4_groups(const Int4Group* grids, int64_t num_groups, uint8_t* codes, uint8_t* pairs) {
    float largest = 0.0f;
    for (int64_t group = 0; group < num_groups; ++group) {
        const float low = -grids[group].m, high = grids[group].m + 15.0f * grids[group].d;
        largest = low > largest ? low : largest;
        largest = high > largest ? high : largest;
    }
    const float scale = largest / 127.0f;
    const float inverse = scale > 0.0f ? 256.0f / scale : 0.0f;
    for (int64_t group = 0; group < num_groups; ++group, codes += 640, pairs += 640) {
        const Int4Group& grid = grids[group];
        const uint16_t slope = to_uint16(grid.d * inverse);
        const float ceiling = 65535.0f - 15.0f * slope;
        const float wanted = grid.m * inverse + 128.0f * 257.0f;
        const uint16_t pair[2] = {slope, to_uint16(wanted < ceiling ? wanted : ceiling)};
        std::memcpy(pairs, pair, sizeof pair);
        for (int i = 0; i < 16; ++i) codes[i / 4 * 64 + i % 4] = static_cast<uint8_t>(grid.codes[i] | grid.codes[16 + i] << 4);
    }
    return scale;
}

// As pack_int4_groups, for codes of 8 bits and slopes.
static float pack_int8_groups(const Int8Group* grids, int64_t num_groups, uint8_t* codes, uint8_t* slopes) {
    float largest = 0.0f;
    for (int64_t group = 0; group < num_groups; ++group) {
        const float d = grids[group].d < 0.0f ? -grids[group].d : grids[group].d;
        largest = d > largest ? d : largest;
    }
    const float scale = largest * (32768.0f / kLargestInt16);
    const float inverse = scale > 0.0f ? 32768.0f / scale : 0.0f;
    for (int64_t group = 0; group < num_groups; ++group, codes += 1088, slopes += 1088) {
        const int16_t slope = static_cast<int16_t>(rounded(grids[group].d * inverse));
        std::memcpy(slopes, &slope, sizeof slope);
        for (int i = 0; i < 32; i += 4) std::memcpy(codes + i * 16, grids[group].codes + i, 4);
    }
    return scale;
}

// Work space of one thread for a row: its floats, and the grids that they are on.
struct RowSpace {
    float* x;
    Int4Group* int4;
    Int8Group* int8;
};

static float pack_integer_column(const PackedMatrix& w, const FileRow& row, int64_t column, const RowSpace& space, uint8_t* panel) {
    const int64_t num_groups = padded_inputs(w.kind, w.num_inputs) / 32, tile = column / 16;
    for (int64_t group = 0; group < num_groups; ++group) {
        const float* x = space.x + group * 32;
        const bool in_file = row.data != nullptr && (group + 1) * 32 <= w.num_inputs;
        if (w.kind == WeightKind::kInt4) {
            if (!in_file || !keep_int4_grid(row, group, space.int4 + group)) make_int4_grid(x, space.int4 + group);
        } else if (!in_file || !keep_int8_grid(row, group, space.int8 + group)) {
            make_int8_grid(x, space.int8 + group);
        }
    }
    const int64_t in_line = column % 16 * 4;
    if (w.kind == WeightKind::kInt4)
        return pack_int4_groups(space.int4, num_groups, panel + tile * 320 + in_line, panel + tile * 320 + 256 + in_line);
    return pack_int8_groups(space.int8, num_groups, panel + tile * 512 + in_line, panel + 1024 + column * 2);
}

static void pack_column(const PackArgs& args, int64_t panel, int64_t column, const RowSpace& space) {
    PackedMatrix& w = *args.matrix;
    const int64_t inputs = padded_inputs(w.kind, w.num_inputs);
    const int64_t index = row_of_output(w, panel, column);
    const FileRow row = index < 0 ? FileRow{nullptr, GgmlType::F32} : find_row(args, index);
    float* x = space.x;
    std::memset(x, 0, static_cast<size_t>(inputs + kLanes) * sizeof(float));
    if (row.data != nullptr) dequantize_row(row.type, row.data, x, w.num_inputs);

    uint8_t* data = w.panels + panel * w.panel_bytes;
    if (w.kind == WeightKind::kFloat32) {
        for (int64_t k = 0; k < inputs; ++k) reinterpret_cast<float*>(data)[k * 32 + column] = x[k];
    } else if (w.kind == WeightKind::kBf16) {
        pack_bf16_column(x, inputs, data + column / 16 * 1024 + column % 16 * 4);
    } else {
        w.scales[panel * 32 + column] = pack_integer_column(w, row, column, space, data);
    }
}

static void pack(const PackArgs& args, Team& team) {
    const int64_t inputs = padded_inputs(args.matrix->kind, args.matrix->num_inputs);
    const int64_t floats = inputs + kLanes;
    const int64_t group_bytes = sizeof(Int4Group) > sizeof(Int8Group) ? sizeof(Int4Group) : sizeof(Int8Group);
    float* x = static_cast<float*>(team.scratch(static_cast<size_t>(floats) * sizeof(float) + static_cast<size_t>(inputs / 32 * group_bytes)));
    const RowSpace space = {x, reinterpret_cast<Int4Group*>(x + floats), reinterpret_cast<Int8Group*>(x + floats)};
    const Range panels = team.share(args.matrix->num_panels);
    for (int64_t panel = panels.begin; panel < panels.end; ++panel)
        for (int64_t column = 0; column < kPanelOutputs; ++column) pack_column(args, panel, column, space);
}

}  // namespace ridgeline::RL_TIER
