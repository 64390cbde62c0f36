// The float vector every kernel is written with, and the few primitives on it.
//
// `Vec` is a GCC/Clang vector type, so + - * / work on it. Rounding is explicit: `fma` is fused where the
// tier has the instruction, and nothing else is (the module is compiled with -ffp-contract=off).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef RL_TIER
#error "RL_TIER must name the tier that this translation unit is compiled for"
#endif

#define RL_INLINE static inline __attribute__((always_inline))

namespace ridgeline::RL_TIER {

#if defined(__AVX512F__)
using Vec = __m512;
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
using Vec = __m256;
inline constexpr int kLanes = 8;
#else
typedef float Vec __attribute__((vector_size(16)));
inline constexpr int kLanes = 4;
#endif

typedef int32_t VecInt __attribute__((vector_size(sizeof(Vec))));

RL_INLINE Vec splat(float value) { return Vec{} + value; }

RL_INLINE Vec zero() { return Vec{}; }

RL_INLINE Vec load(const float* from) {
    Vec value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

RL_INLINE void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }

// The first `count` (0..kLanes) floats; the other lanes are zero. Reads nothing beyond.
RL_INLINE Vec load_partial(const float* from, int64_t count) {
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#else
    float lanes[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = from[i];
    return load(lanes);
#endif
}

// Writes the first `count` (0..kLanes) lanes and nothing beyond.
RL_INLINE void store_partial(float* to, Vec value, int64_t count) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), value);
#else
    float lanes[kLanes];
    store(lanes, value);
    for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
#endif
}

// a * b + c, rounded once where the tier has FMA.
RL_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

// Lane-wise larger value; a NaN in `b` survives (x86 semantics: the second operand if unordered).
RL_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
    return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

RL_INLINE Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
    return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_min_ps(a, b);
#else
    return a < b ? a : b;
#endif
}

RL_INLINE VecInt bits_of(Vec value) {
    VecInt bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

RL_INLINE Vec from_bits(VecInt bits) {
    Vec value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

RL_INLINE Vec abs(Vec value) { return from_bits(bits_of(value) & 0x7fffffff); }

RL_INLINE Vec to_float(VecInt value) { return __builtin_convertvector(value, Vec); }

// Truncates towards zero.
RL_INLINE VecInt to_int(Vec value) { return __builtin_convertvector(value, VecInt); }

// Nearest integer, ties to even; exact for |value| < 2^22.
RL_INLINE Vec round_nearest(Vec value) {
#if defined(__AVX512F__)
    return _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return _mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const Vec magic = splat(12582912.0f);  // 1.5 * 2^23
    return (value + magic) - magic;
#endif
}

// 2^n for integral n in -126..127.
RL_INLINE Vec power_of_two(Vec n) { return from_bits((to_int(n) + 127) << 23); }

// Sum of the lanes, by halves (one fixed order: _mm512_reduce_add_ps adds in the same one).
RL_INLINE float reduce_add(Vec value) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(value);
#else
    float lanes[kLanes];
    store(lanes, value);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
#endif
}

RL_INLINE float reduce_max(Vec value) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(value);
#else
    float lanes[kLanes];
    store(lanes, value);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    return lanes[0];
#endif
}

// ---- bfloat16: the upper half of a float32, rounded to nearest even ----

RL_INLINE float bf16_to_float(uint16_t value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

RL_INLINE uint16_t float_to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);  // NaN stays NaN
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// kLanes consecutive bf16 as floats.
RL_INLINE Vec load_bf16(const uint16_t* from) {
#if defined(__AVX512F__)
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))), 16));
#elif defined(__AVX2__)
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))), 16));
#else
    float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = bf16_to_float(from[i]);
    return load(lanes);
#endif
}

RL_INLINE void store_bf16(uint16_t* to, Vec value) {
#if defined(__AVX512BF16__)
    const __m256bh half = _mm512_cvtneps_pbh(value);
    std::memcpy(to, &half, sizeof half);
#else
    typedef uint32_t VecBits __attribute__((vector_size(sizeof(Vec))));
    typedef uint16_t VecHalf __attribute__((vector_size(sizeof(Vec) / 2)));
    VecBits bits;
    std::memcpy(&bits, &value, sizeof bits);
    const VecBits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const VecBits is_nan = (bits & 0x7fffffff) > 0x7f800000;
    const VecBits chosen = (is_nan & ((bits >> 16) | 0x40)) | (~is_nan & rounded);
    const VecHalf half = __builtin_convertvector(chosen, VecHalf);
    std::memcpy(to, &half, sizeof half);
#endif
}

// ---- dot products of pairs of bf16: lane i adds a[2i] * b[2i] + a[2i+1] * b[2i+1] ----

// kLanes pairs of bf16, the even element in the low half of each lane.
using VecBf16Pairs = VecInt;

RL_INLINE VecBf16Pairs load_pairs(const uint16_t* from) {
    VecBf16Pairs value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// One pair in every lane.
RL_INLINE VecBf16Pairs splat_pair(const uint16_t* from) {
    int32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return VecBf16Pairs{} + pair;
}

RL_INLINE Vec dot_pairs(Vec acc, VecBf16Pairs a, VecBf16Pairs b) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
#else
    const int32_t high = static_cast<int32_t>(0xffff0000u);
    acc = fma(from_bits(a << 16), from_bits(b << 16), acc);
    return fma(from_bits(a & high), from_bits(b & high), acc);
#endif
}

RL_INLINE void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

// ---- Loops over a row whose length need not be a multiple of kLanes ----
// `body(offset, count)`: count == kLanes but for the last call. Padded lanes of load_partial are zero.
template <class Body>
RL_INLINE void for_each_vec(int64_t length, Body body) {
    int64_t i = 0;
    for (; i + kLanes <= length; i += kLanes) body(i, static_cast<int64_t>(kLanes));
    if (i < length) body(i, length - i);
}

}  // namespace ridgeline::RL_TIER
