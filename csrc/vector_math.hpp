// Elementary functions on Vec, to about 1e-6 relative: exp2, exp, tanh, sigmoid.
//
// Each is the textbook reduction (Muller, "Elementary Functions", ch. 11): x = n + f with n integral, a polynomial for
// the fraction, and n put into the exponent. NaN stays NaN. Floor: 9 to 12 vector instructions an exp.
#pragma once

#include "simd.hpp"

namespace ridgeline::RL_TIER {

// p * 2^n for integral n in -126..127.
RL_INLINE Vec scale_by_power_of_two(Vec p, Vec n) {
#if defined(__AVX512F__)
    return _mm512_scalef_ps(p, n);
#else
    return p * power_of_two(n);
#endif
}

// 2^x for x within -126..127.
RL_INLINE Vec exp2_within(Vec x) {
    const Vec n = round_nearest(x);
    const Vec f = x - n;  // -0.5 .. 0.5
    // Minimax in the relative error, 9e-8, with 2^0 = 1.
    Vec p = splat(1.32647273e-3f);
    p = fma(p, f, splat(9.67151299e-3f));
    p = fma(p, f, splat(5.55073359e-2f));
    p = fma(p, f, splat(2.40222424e-1f));
    p = fma(p, f, splat(6.93147004e-1f));
    p = fma(p, f, splat(1.0f));
    return scale_by_power_of_two(p, n);
}

// 2^x for x clamped to -126..127 (so 2^-inf is 2^-126, not 0: callers mask).
RL_INLINE Vec exp2(Vec x) { return exp2_within(min(splat(127.0f), max(splat(-126.0f), x))); }

// e^x for x clamped to -87.3..88.
RL_INLINE Vec exp(Vec x) {
    x = min(splat(88.0f), max(splat(-87.3f), x));
    const Vec n = round_nearest(x * splat(1.44269504f));
    Vec r = fma(n, splat(-0.693359375f), x);  // ln 2 in two parts (Cody & Waite), the first of 9 bits
    r = fma(n, splat(2.12194440e-4f), r);
    // Taylor terms to r^6 / 720 on |r| < 0.35: 1e-7.
    Vec p = splat(1.0f / 720);
    p = fma(p, r, splat(1.0f / 120));
    p = fma(p, r, splat(1.0f / 24));
    p = fma(p, r, splat(1.0f / 6));
    p = fma(p, r, splat(0.5f));
    p = fma(p, r, splat(1.0f));
    p = fma(p, r, splat(1.0f));
    return scale_by_power_of_two(p, n);
}

// 1 / (1 + e^-x)
RL_INLINE Vec sigmoid(Vec x) { return splat(1.0f) / (splat(1.0f) + exp(-x)); }

// Odd Taylor polynomial for small |x|, where 1 - 2 / (e^2x + 1) would cancel.
RL_INLINE Vec tanh(Vec x) {
    const Vec large = splat(1.0f) - splat(2.0f) / (exp(x + x) + splat(1.0f));
    const Vec s = x * x;
    Vec p = splat(-1382.0f / 155925);
    p = fma(p, s, splat(62.0f / 2835));
    p = fma(p, s, splat(-17.0f / 315));
    p = fma(p, s, splat(2.0f / 15));
    p = fma(p, s, splat(-1.0f / 3));
    const Vec small = fma(p * s, x, x);
    return abs(x) < splat(0.35f) ? small : large;
}

}  // namespace ridgeline::RL_TIER
