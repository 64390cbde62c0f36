// What a thread does at the start and the end of a region: on the amx tier, the tile configuration.
#pragma once

#include <cstdint>

#include "simd.hpp"

#define RL_STRINGIFY_(name) #name
#define RL_STRINGIFY(name) RL_STRINGIFY_(name)

namespace ridgeline::RL_TIER {

#if defined(__AMX_TILE__)

struct alignas(64) TileConfig {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t num_rows[16];
};

// Palette 1, all eight tiles 16 rows of 64 bytes.
static void enter_region() {
    TileConfig config = {};
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
        config.row_bytes[tile] = 64;
        config.num_rows[tile] = 16;
    }
    // gcc 12 declares only 8 bytes of the configuration as an input of ldtilecfg: keep the stores before it.
    asm volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
}

static void leave_region() { _tile_release(); }

#else

inline constexpr void (*enter_region)() = nullptr;
inline constexpr void (*leave_region)() = nullptr;

#endif

}  // namespace ridgeline::RL_TIER
