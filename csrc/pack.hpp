// Rows of a file -> panels. Each thread takes panels, turns their 32 rows into floats, and lays them out quantised.
#pragma once

#include <cstdint>

#include "ggml_blocks.hpp"
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

// A row of the stack where it lies in the file.
struct FileRow {
    const uint8_t* data;  // null beyond the matrix: a row of zeros
    GgmlType type;
};

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

RL_INLINE float largest_magnitude(const float* x, int64_t length) {
    Vec largest = zero();
    for (int64_t i = 0; i < length; i += kLanes) largest = max(abs(load(x + i)), largest);
    return reduce_max(largest);
}

static void pack_int8_column(const float* x, int64_t inputs, float scale, int8_t* bytes, uint8_t* lines) {
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    for (int64_t k = 0; k < inputs; ++k) bytes[k] = static_cast<int8_t>(rounded(x[k] * inverse) ^ kWeightBias);
    for (int64_t k = 0; k < inputs; k += 4) std::memcpy(lines + k / 64 * 2048 + k % 64 / 4 * 64, bytes + k, 4);
}

static void pack_bf16_column(const float* x, int64_t inputs, uint8_t* lines) {
    for (int64_t k = 0; k < inputs; k += 2) {
        const uint16_t pair[2] = {float_to_bf16(x[k]), float_to_bf16(x[k + 1])};
        std::memcpy(lines + k / 32 * 2048 + k % 32 / 2 * 64, pair, sizeof pair);
    }
}

// The grid d * q + m of one group of 32 weights, and their codes 0..15.
struct Int4Group {
    float d, m;
    uint8_t codes[32];
};

// The file's own grid where it has one of this form, else the range of the group in 15 steps.
static Int4Group int4_group(const FileRow& row, int64_t group, const float* x) {
    Int4Group result;
    const bool q4_0 = row.type == GgmlType::Q4_0, q4_1 = row.type == GgmlType::Q4_1;
    if (row.data != nullptr && (q4_0 || q4_1)) {
        const uint8_t* block = row.data + group * (q4_0 ? 18 : 20);
        result.d = load_half(block);
        result.m = q4_0 ? -8.0f * result.d : load_half(block + 2);
        const uint8_t* nibbles = block + (q4_0 ? 2 : 4);
        const bool negative = result.d < 0.0f;  // Q4_0 may: mirror the grid so that A stays positive
        for (int j = 0; j < 16; ++j) {
            result.codes[j] = negative ? 15 - (nibbles[j] & 15) : nibbles[j] & 15;
            result.codes[j + 16] = negative ? 15 - (nibbles[j] >> 4) : nibbles[j] >> 4;
        }
        if (negative) {
            result.m += 15.0f * result.d;
            result.d = -result.d;
        }
        return result;
    }
    float low = x[0], high = x[0];
    for (int i = 1; i < 32; ++i) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    result.d = (high - low) / 15.0f;
    result.m = low;
    const float inverse = result.d > 0.0f ? 1.0f / result.d : 0.0f;
    for (int i = 0; i < 32; ++i) {
        const int32_t code = rounded((x[i] - low) * inverse);
        result.codes[i] = static_cast<uint8_t>(code < 0 ? 0 : code > 15 ? 15 : code);
    }
    return result;
}

RL_INLINE uint16_t to_uint16(float value) { return static_cast<uint16_t>(value < 0.0f ? 0.0f : value > 65535.0f ? 65535.0f : value + 0.5f); }

// (A, B) such that A * code + B is w in 16 bits (linear_args.hpp) and never more. Returns the scale, which covers
// whole grids: a code that the row does not use must not push its group out of range.
static float pack_int4_column(const FileRow& row, const float* x, int64_t num_inputs, int64_t inputs, Int4Group* grids, int64_t column,
                              uint8_t* tile) {
    float largest = 0.0f;
    for (int64_t group = 0; group < inputs / 32; ++group) {
        FileRow source = row;
        if ((group + 1) * 32 > num_inputs) source.type = GgmlType::F32;  // padding: no block in the file
        grids[group] = int4_group(source, group, x + group * 32);
        const float low = -grids[group].m, high = grids[group].m + 15.0f * grids[group].d;
        largest = low > largest ? low : largest;
        largest = high > largest ? high : largest;
    }
    const float scale = largest / 127.0f;
    const float inverse = scale > 0.0f ? 256.0f / scale : 0.0f;
    for (int64_t group = 0; group < inputs / 32; ++group, tile += 640) {
        const Int4Group& grid = grids[group];
        const uint16_t slope = to_uint16(grid.d * inverse);
        const float ceiling = 65535.0f - 15.0f * slope;
        const float wanted = grid.m * inverse + 128.0f * 256.0f + 128.0f;  // the lower byte counts from 128
        const uint16_t pair[2] = {slope, to_uint16(wanted < ceiling ? wanted : ceiling)};
        std::memcpy(tile + 256 + column * 4, pair, sizeof pair);
        for (int line = 0; line < 4; ++line)
            for (int j = 0; j < 4; ++j)
                tile[line * 64 + column * 4 + j] = static_cast<uint8_t>(grid.codes[line * 4 + j] | grid.codes[16 + line * 4 + j] << 4);
    }
    return scale;
}

// Work space of one thread for a row: its floats, and the bytes or the grids that they become.
struct RowSpace {
    float* x;
    int8_t* bytes;
    Int4Group* grids;
};

static void pack_column(const PackArgs& args, int64_t panel, int64_t column, const RowSpace& space) {
    PackedMatrix& w = *args.matrix;
    const int64_t inputs = padded_inputs(w.kind, w.num_inputs);
    const int64_t index = row_of_output(w, panel, column);
    const FileRow row = index < 0 ? FileRow{nullptr, GgmlType::F32} : find_row(args, index);
    float* x = space.x;
    std::memset(x, 0, static_cast<size_t>(inputs + kLanes) * sizeof(float));
    if (row.data != nullptr) dequantize_row(row.type, row.data, x, w.num_inputs);

    uint8_t* data = w.panels + panel * w.panel_bytes;
    const int64_t tile = column / 16;
    if (w.kind == WeightKind::kFloat32) {
        for (int64_t k = 0; k < inputs; ++k) reinterpret_cast<float*>(data)[k * 32 + column] = x[k];
    } else if (w.kind == WeightKind::kBf16) {
        pack_bf16_column(x, inputs, data + tile * 1024 + column % 16 * 4);
    } else if (w.kind == WeightKind::kInt8) {
        const float scale = largest_magnitude(x, inputs) / 127.0f;
        w.scales[panel * 32 + column] = scale;
        pack_int8_column(x, inputs, scale, space.bytes, data + tile * 1024 + column % 16 * 4);
    } else {
        w.scales[panel * 32 + column] = pack_int4_column(row, x, w.num_inputs, inputs, space.grids, column % 16, data + tile * 320);
    }
}

static void pack(const PackArgs& args, Team& team) {
    const int64_t inputs = padded_inputs(args.matrix->kind, args.matrix->num_inputs);
    const int64_t floats = inputs + kLanes;
    float* x = static_cast<float*>(team.scratch(static_cast<size_t>(floats) * 5 + static_cast<size_t>(inputs) / 32 * sizeof(Int4Group) + 64));
    int8_t* bytes = reinterpret_cast<int8_t*>(x + floats);
    const RowSpace space = {x, bytes, reinterpret_cast<Int4Group*>(bytes + floats / 4 * 4)};
    const Range panels = team.share(args.matrix->num_panels);
    for (int64_t panel = panels.begin; panel < panels.end; ++panel)
        for (int64_t column = 0; column < kPanelOutputs; ++column) pack_column(args, panel, column, space);
}

}  // namespace ridgeline::RL_TIER
