// What the machine can do at most: bytes read a second, multiply-adds a second. The floors of every other kernel.
//
//   measure_read   every thread reads its own part of a buffer, `rounds` times over; nothing is done with the bytes but a sum
//   measure_peak   multiply-adds between registers only, enough independent sums to hide the latency of each
#pragma once

#include "measure_args.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"

namespace ridgeline::RL_TIER {

template <int kPrefetchBytes>
static float read_rounds(const float* begin, const float* end, int64_t rounds) {
    constexpr int kSums = 8;
    Vec sums[kSums] = {};
    for (int64_t round = 0; round < rounds; ++round) {
        for (const float* at = begin; at + kSums * kLanes <= end; at += kSums * kLanes) {
#pragma GCC unroll 8
            for (int i = 0; i < kSums; ++i) {
                if constexpr (kPrefetchBytes > 0) prefetch(reinterpret_cast<const uint8_t*>(at + i * kLanes) + kPrefetchBytes);
                sums[i] = sums[i] + load(at + i * kLanes);
            }
        }
        asm volatile("" ::: "memory");  // the next round reads again
    }
    for (int i = 1; i < kSums; ++i) sums[0] = sums[0] + sums[i];
    return reduce_add(sums[0]);
}

static void measure_read(const ReadArgs& args, Team& team) {
    const Range part = team.share(args.num_floats, 1024);
    const float* begin = args.data + part.begin;
    const float* end = args.data + part.end;
    // 16 KB ahead, as the matrix products have it.
    args.sums[team.thread] = args.prefetches ? read_rounds<16384>(begin, end, args.rounds) : read_rounds<0>(begin, end, args.rounds);
}

// A multiply-add is two operations.
static float peak_float32(int64_t rounds) {
    constexpr int kSums = 12;
    Vec sums[kSums] = {};
    Vec x = splat(1.0f + 1e-7f), y = splat(1e-7f);
    for (int64_t round = 0; round < rounds; ++round) {
        asm volatile("" : "+m"(x), "+m"(y));
        const Vec a = x, b = y;
#pragma GCC unroll 4
        for (int repeat = 0; repeat < 4; ++repeat)
#pragma GCC unroll 12
            for (int i = 0; i < kSums; ++i) sums[i] = fma(sums[i], a, b);
    }
    for (int i = 1; i < kSums; ++i) sums[0] = sums[0] + sums[i];
    return reduce_add(sums[0]);
}

inline constexpr int64_t kFloatOperations = 2 * 4 * 12 * kLanes;

#if defined(__AVX512VNNI__)

static float peak_vnni(int64_t rounds) {
    constexpr int kSums = 12;
    __m512i sums[kSums] = {};
    __m512i x = _mm512_set1_epi32(0x01020304), y = _mm512_set1_epi32(0x01010101);
    for (int64_t round = 0; round < rounds; ++round) {
        asm volatile("" : "+m"(x), "+m"(y));
        const __m512i a = x, b = y;
#pragma GCC unroll 4
        for (int repeat = 0; repeat < 4; ++repeat)
#pragma GCC unroll 12
            for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
    }
    for (int i = 1; i < kSums; ++i) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
    return static_cast<float>(_mm512_reduce_add_epi32(sums[0]));
}

inline constexpr int64_t kVnniOperations = 2 * 4 * 12 * 64;

#endif

#if defined(__AMX_TILE__)

// Four sums of 16 x 16, two tiles a side: every product meets other registers than the one before it.
template <bool kInt8>
static float peak_tiles(int64_t rounds) {
    alignas(64) uint8_t values[1024];
    for (int i = 0; i < 1024; i += 2) values[i] = 1, values[i + 1] = 0x3c;  // as bf16: some 0.008
    _tile_loadd(4, values, 64);
    _tile_loadd(5, values, 64);
    _tile_loadd(6, values, 64);
    _tile_loadd(7, values, 64);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t round = 0; round < rounds; ++round) {
        if constexpr (kInt8) {
            _tile_dpbsud(0, 4, 6);
            _tile_dpbsud(1, 4, 7);
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        } else {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    alignas(64) float out[256];
    _tile_stored(0, out, 64);
    return out[0];
}

inline constexpr int64_t kTileOperations = 2 * 4 * 16 * 16 * 64;  // int8; half of it in bf16

#endif

// Operations of one round on one thread; 0: not on this tier.
static int64_t peak_operations(Unit unit) {
    switch (unit) {
        case Unit::kFloat32: return kFloatOperations;
#if defined(__AVX512VNNI__)
        case Unit::kVnniInt8: return kVnniOperations;
#endif
#if defined(__AMX_TILE__)
        case Unit::kAmxInt8: return kTileOperations;
        case Unit::kAmxBf16: return kTileOperations / 2;
#endif
        default: return 0;
    }
}

static void measure_peak(const PeakArgs& args, Team& team) {
    float sum = 0;
    switch (args.unit) {
        case Unit::kFloat32: sum = peak_float32(args.rounds); break;
#if defined(__AVX512VNNI__)
        case Unit::kVnniInt8: sum = peak_vnni(args.rounds); break;
#endif
#if defined(__AMX_TILE__)
        case Unit::kAmxInt8: sum = peak_tiles<true>(args.rounds); break;
        case Unit::kAmxBf16: sum = peak_tiles<false>(args.rounds); break;
#endif
        default: break;
    }
    args.sums[team.thread] = sum;
}

}  // namespace ridgeline::RL_TIER
