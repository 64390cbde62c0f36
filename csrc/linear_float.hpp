// Products with a bf16 or float32 panel: float sums over the inputs in one order, whatever the number of rows.
#pragma once

#include <cstdint>

#include "linear_args.hpp"
#include "simd.hpp"

namespace ridgeline::RL_TIER {

inline constexpr int kVecsPerPanel = 32 / kLanes;

// Lines of 32 outputs: every register of weights meets one broadcast of each row.
template <int kRows>
static void multiply_float32(const uint8_t* panel, const uint8_t* rows, int64_t row_bytes, int64_t inputs, float* out) {
    Vec sums[kRows][kVecsPerPanel] = {};
    const float* weights = reinterpret_cast<const float*>(panel);
    for (int64_t k = 0; k < inputs; ++k, weights += 32)
        for (int r = 0; r < kRows; ++r) {
            const Vec x = splat(reinterpret_cast<const float*>(rows + r * row_bytes)[k]);
            for (int v = 0; v < kVecsPerPanel; ++v) sums[r][v] = fma(load(weights + v * kLanes), x, sums[r][v]);
        }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVecsPerPanel; ++v) store(out + r * 32 + v * kLanes, sums[r][v]);
}

#if defined(__AMX_TILE__)

inline constexpr int64_t kBf16Rows = 32;

// kTiles A tiles of 16 rows against the panel's two B tiles; a single row takes the same instructions, so it rounds alike.
template <int kTiles>
static void multiply_bf16_amx(const uint8_t* panel, const uint8_t* rows, int64_t row_bytes, int64_t inputs, bool streams, float* out) {
    const uint8_t* second = rows + 16 * row_bytes;
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kTiles == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < inputs; k += 32, panel += 2048) {
        if (streams)
            for (int line = 0; line < 32; ++line) prefetch(panel + 16384 + line * 64);
        _tile_loadd(4, rows + k * 2, row_bytes);
        _tile_loadd(6, panel, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, panel + 1024, 64);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (kTiles == 2) {
            _tile_loadd(5, second + k * 2, row_bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, out, 128);
    _tile_stored(1, out + 16, 128);
    if constexpr (kTiles == 2) {
        _tile_stored(2, out + 512, 128);
        _tile_stored(3, out + 528, 128);
    }
}

#else

inline constexpr int64_t kBf16Rows = 4;

template <int kRows>
static void multiply_bf16_vec(const uint8_t* panel, const uint8_t* rows, int64_t row_bytes, int64_t inputs, float* out) {
    constexpr int kVecsPerTile = 16 / kLanes;
    for (int tile = 0; tile < 2; ++tile) {
        Vec sums[kRows][kVecsPerTile] = {};
        const uint8_t* lines = panel + tile * 1024;
        for (int64_t k = 0; k < inputs; k += 32, lines += 2048)
            for (int line = 0; line < 16; ++line) {
                VecBf16Pairs weights[kVecsPerTile];
                for (int v = 0; v < kVecsPerTile; ++v)
                    weights[v] = load_pairs(reinterpret_cast<const uint16_t*>(lines + line * 64) + v * kLanes * 2);
                for (int r = 0; r < kRows; ++r) {
                    const VecBf16Pairs x = splat_pair(reinterpret_cast<const uint16_t*>(rows + r * row_bytes) + k + line * 2);
                    for (int v = 0; v < kVecsPerTile; ++v) sums[r][v] = dot_pairs(sums[r][v], weights[v], x);
                }
            }
        for (int r = 0; r < kRows; ++r)
            for (int v = 0; v < kVecsPerTile; ++v) store(out + r * 32 + tile * 16 + v * kLanes, sums[r][v]);
    }
}

#endif

// out[..][32] for num_rows within 1..kBf16Rows; rows of `out` beyond num_rows may be written.
RL_INLINE void multiply_bf16(const uint8_t* panel, const uint8_t* rows, int64_t row_bytes, int64_t inputs, int64_t num_rows,
                             bool streams, float* out) {
#if defined(__AMX_TILE__)
    if (num_rows <= 16) return multiply_bf16_amx<1>(panel, rows, row_bytes, inputs, streams, out);
    multiply_bf16_amx<2>(panel, rows, row_bytes, inputs, streams, out);
#else
    (void)streams;
    if (num_rows == 4) return multiply_bf16_vec<4>(panel, rows, row_bytes, inputs, out);
    for (int64_t r = 0; r < num_rows; ++r) multiply_bf16_vec<1>(panel, rows + r * row_bytes, row_bytes, inputs, out + r * 32);
#endif
}

}  // namespace ridgeline::RL_TIER
