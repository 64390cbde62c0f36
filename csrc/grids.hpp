// The grid of each group of 32 weights, from the file's blocks where those are groups of 32, else made for the group.
//
//   int4   d * code + m, codes 0..15       kept: Q4_0, Q4_1, Q4_K       made: the group's range in 15 steps
//   int8   d * code, codes -128..127       kept: Q8_0, Q5_0             made: the largest magnitude in 127 steps
#pragma once

#include <cstdint>

#include "ggml_blocks.hpp"
#include "quantize_rows.hpp"
#include "simd.hpp"

namespace ridgeline::RL_TIER {

// A row of the stack where it lies in the file.
struct FileRow {
    const uint8_t* data;  // null beyond the matrix: a row of zeros
    GgmlType type;
};

struct Int4Group {
    float d, m;  // d >= 0
    uint8_t codes[32];
};

struct Int8Group {
    float d;
    int8_t codes[32];
};

// The 32 nibbles of a block of a `_0` or `_1` type, in order.
RL_INLINE void nibbles_of(const uint8_t* bytes, uint8_t* codes) {
    for (int j = 0; j < 16; ++j) {
        codes[j] = bytes[j] & 15;
        codes[j + 16] = bytes[j] >> 4;
    }
}

static bool keep_int4_grid(const FileRow& row, int64_t group, Int4Group* grid) {
    switch (row.type) {
        case GgmlType::Q4_0: {
            const uint8_t* block = row.data + group * 18;
            grid->d = load_half(block);
            grid->m = -8.0f * grid->d;
            nibbles_of(block + 2, grid->codes);
            break;
        }
        case GgmlType::Q4_1: {
            const uint8_t* block = row.data + group * 20;
            grid->d = load_half(block);
            grid->m = load_half(block + 2);
            nibbles_of(block + 4, grid->codes);
            break;
        }
        case GgmlType::Q4_K: {
            const uint8_t* block = row.data + group / 8 * 144;
            const int s = static_cast<int>(group % 8);
            const ScaleAndMin pair = unpack_k_scale(block + 4, s);
            grid->d = load_half(block) * pair.scale;
            grid->m = -load_half(block + 2) * pair.min;
            for (int l = 0; l < 32; ++l) grid->codes[l] = block[16 + s / 2 * 32 + l] >> s % 2 * 4 & 15;
            break;
        }
        default: return false;
    }
    if (grid->d < 0.0f) {  // possible in a file: the mirrored grid
        for (int i = 0; i < 32; ++i) grid->codes[i] = 15 - grid->codes[i];
        grid->m += 15.0f * grid->d;
        grid->d = -grid->d;
    }
    return true;
}

static void make_int4_grid(const float* x, Int4Group* grid) {
    float low = x[0], high = x[0];
    for (int i = 1; i < 32; ++i) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    grid->d = (high - low) / 15.0f;
    grid->m = low;
    const float inverse = grid->d > 0.0f ? 1.0f / grid->d : 0.0f;
    for (int i = 0; i < 32; ++i) {
        const int32_t code = rounded((x[i] - low) * inverse);
        grid->codes[i] = static_cast<uint8_t>(code < 0 ? 0 : code > 15 ? 15 : code);
    }
}

static bool keep_int8_grid(const FileRow& row, int64_t group, Int8Group* grid) {
    if (row.type == GgmlType::Q8_0) {
        const uint8_t* block = row.data + group * 34;
        grid->d = load_half(block);
        std::memcpy(grid->codes, block + 2, 32);
        return true;
    }
    if (row.type == GgmlType::Q5_0) {
        const uint8_t* block = row.data + group * 22;
        uint8_t nibbles[32];
        nibbles_of(block + 6, nibbles);
        const uint32_t fifth = load_u32(block + 2);
        grid->d = load_half(block) / 8.0f;  // codes of -16..15 as -128..120: the slopes' 16 bits are of use
        for (int i = 0; i < 32; ++i) grid->codes[i] = static_cast<int8_t>(((nibbles[i] | (fifth >> i & 1) << 4) - 16) * 8);
        return true;
    }
    return false;
}

static void make_int8_grid(const float* x, Int8Group* grid) {
    float largest = 0.0f;
    for (int i = 0; i < 32; ++i) {
        const float magnitude = x[i] < 0.0f ? -x[i] : x[i];
        largest = magnitude > largest ? magnitude : largest;
    }
    grid->d = largest / 127.0f;
    const float inverse = grid->d > 0.0f ? 1.0f / grid->d : 0.0f;
    for (int i = 0; i < 32; ++i) grid->codes[i] = static_cast<int8_t>(rounded(x[i] * inverse));
}

}  // namespace ridgeline::RL_TIER
