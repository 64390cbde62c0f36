// The token of each row of logits: penalties, temperature, min_p, top_k, top_p and a draw, without sorting the vocabulary.
//
// ridgeline/runtime/sampler.py is the definition, and the token is the same to the last bit: a token's share
// 2^((logit - largest) * scale) is a float made of multiplications and additions that are rounded one by one, and its weight is
// that share in units of 2^-40, rounded. Weights add up exactly in any order, so neither lanes, tiers nor blocks can differ.
//
//     largest -> shares: their mass, and the head -> Cut: the least share kept (radix selection) -> walk to the number drawn
//
// The Cut is nearly always found in the row's head, the tokens within 2^-10 of the likeliest (for top_k: those that reach
// the k-th largest maximum of a chunk).
// Floor: about 25 vector instructions for kLanes logits (the share and its weight); the row is read twice.
#pragma once

#include <cmath>

#include "argmax.hpp"
#include "philox.hpp"
#include "sample_args.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"

namespace ridgeline::RL_TIER {

typedef double VecMass __attribute__((vector_size(sizeof(Vec))));  // kLanes / 2 sums
typedef uint32_t VecBits __attribute__((vector_size(sizeof(Vec))));

inline constexpr int64_t kBlock = 1024;             // tokens whose weights are added up together
inline constexpr double kUnit = 1099511627776.0;    // 2^40
inline constexpr uint32_t kOneBits = 0x3f800000;    // of the largest share, 1.0f
inline constexpr uint32_t kNumKeys = 43u << 23;     // 1.0f down to 2^-42: beyond, weights are 0

// ---- Shares and weights ----

// 2^x for x <= 0 (x below -60 counts as -60); no fused operation, so that every tier and numpy give the same bits.
RL_INLINE Vec share_of(Vec x) {
    x = max(splat(-60.0f), x);
    const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: the sum's last bits are x, rounded to the nearest integer
    const Vec shifted = x + magic;
    const Vec f = x - (shifted - magic);
    Vec p = splat(1.32647273e-3f);  // as exp2_within
    p = p * f + splat(9.67151299e-3f);
    p = p * f + splat(5.55073359e-2f);
    p = p * f + splat(2.40222424e-1f);
    p = p * f + splat(6.93147004e-1f);
    p = p * f + splat(1.0f);
    return from_bits(bits_of(p) + (bits_of(shifted) << 23));  // p * 2^n
}

// A share as a multiple of 2^-40, to the nearest, ties to even: 2^12 + share has no finer digits.
RL_INLINE double to_unit(double share) { return (share + 4096.0) - 4096.0; }

static inline int64_t weight_of(float share) { return static_cast<int64_t>(to_unit(share) * kUnit); }

// Adds the rounded shares of kLanes tokens. Sums of a block need 10 + 41 bits, so they are exact.
RL_INLINE void add_weights(VecMass& mass, Vec share) {
    const VecMass big = VecMass{} + 4096.0;
#if defined(__AVX512F__)
    const VecMass low = _mm512_cvtps_pd(_mm512_castps512_ps256(share)), high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(share, 1));
#elif defined(__AVX2__)
    const VecMass low = _mm256_cvtps_pd(_mm256_castps256_ps128(share)), high = _mm256_cvtps_pd(_mm256_extractf128_ps(share, 1));
#else
    VecMass low, high;
    for (int lane = 0; lane < kLanes / 2; ++lane) {
        low[lane] = share[lane];
        high[lane] = share[lane + kLanes / 2];
    }
#endif
    mass += ((low + big) - big) + ((high + big) - big);
}

static inline int64_t sum_of(VecMass mass) {
    double sum = 0;
    for (size_t lane = 0; lane < sizeof(VecMass) / sizeof(double); ++lane) sum += mass[lane];
    return static_cast<int64_t>(sum * kUnit);
}

RL_INLINE Vec only(Vec share, VecBits kept) { return from_bits(bits_of(share) & (VecInt)kept); }

// One bit for each lane that is all ones.
RL_INLINE uint32_t lanes_of(VecBits mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#else
    uint32_t lanes = 0;
    for (int lane = 0; lane < kLanes; ++lane) lanes |= (mask[lane] & 1u) << lane;
    return lanes;
#endif
}

// The lanes below `count`.
RL_INLINE VecBits first_lanes(int64_t count) {
    uint32_t lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane < count ? 0xffffffffu : 0;
    VecBits mask;
    std::memcpy(&mask, lanes, sizeof mask);
    return mask;
}

// The tokens of a row whose shares are at least `least`, in order of their ids.
struct Head {
    float* shares;
    int32_t* ids;
    int64_t size;
    float least;

    RL_INLINE void take(Head& self, Vec share, int64_t first) {
        take_lanes(self, share, lanes_of((VecBits)(share >= splat(self.least))), first);
    }

    RL_INLINE void take_lanes(Head& self, Vec share, uint32_t lanes, int64_t first) {
        if (lanes == 0) return;
#if defined(__AVX512F__)
        const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i id = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(first)), order);
        const __mmask16 mask = static_cast<__mmask16>(lanes);
        _mm512_storeu_ps(self.shares + self.size, _mm512_maskz_compress_ps(mask, share));
        _mm512_storeu_si512(self.ids + self.size, _mm512_maskz_compress_epi32(mask, id));
        self.size += __builtin_popcount(lanes);
#else
        for (; lanes != 0; lanes &= lanes - 1) {
            const int lane = __builtin_ctz(lanes);
            self.shares[self.size] = share[lane];
            self.ids[self.size++] = static_cast<int32_t>(first + lane);
        }
#endif
    }
};

// The logits of a row and how they become shares: 2^((x - largest) * scale).
struct Scaled {
    const float* x;
    int64_t width;
    float largest;
    float scale;

    RL_INLINE int64_t block_size(const Scaled& row, int64_t begin) { return row.width - begin < kBlock ? row.width - begin : kBlock; }
};

// Calls take(share, id of the first lane) for the block from `begin`; lanes beyond the row hold 0. Returns the block's mass.
template <class Take>
RL_INLINE int64_t for_block(const Scaled& row, int64_t begin, Take take) {
    const int64_t end = begin + Scaled::block_size(row, begin);
    const Vec largest = splat(row.largest), scale = splat(row.scale);
    VecMass mass = {};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
        const Vec share = share_of((load(row.x + i) - largest) * scale);
        add_weights(mass, share);
        take(share, i);
    }
    if (i < end) {
        const Vec share = only(share_of((load_partial(row.x + i, end - i) - largest) * scale), first_lanes(end - i));
        add_weights(mass, share);
        take(share, i);
    }
    return sum_of(mass);
}

// ---- Which tokens stay ----

// The tokens kept: shares above `least`, and those equal to it at index `last` or before. `mass`: their weights.
struct Cut {
    float least;
    int64_t last;
    int64_t mass;
};

// Shares of some tokens in order of their ids, and the sum of their weights.
struct Shares {
    const float* values;
    int64_t count;
    int64_t mass;
};

static int64_t mass_of_block(const float* shares, int64_t begin, int64_t end, const Cut& cut) {
    const Vec least = splat(cut.least);
    VecMass mass = {};
    int64_t i = begin, rest = 0;
    for (; i + kLanes <= end; i += kLanes) {
        const Vec share = load(shares + i);
        VecBits equal = (VecBits)(share == least);
        if (i + kLanes - 1 > cut.last) equal &= first_lanes(cut.last - i + 1);
        add_weights(mass, only(share, (VecBits)(share > least) | equal));
    }
    for (; i < end; ++i)
        if (shares[i] > cut.least || (shares[i] == cut.least && i <= cut.last)) rest += weight_of(shares[i]);
    return sum_of(mass) + rest;
}

static int64_t mass_of(const float* shares, int64_t count, const Cut& cut) {
    int64_t mass = 0;
    for (int64_t begin = 0; begin < count; begin += kBlock)
        mass += mass_of_block(shares, begin, count - begin < kBlock ? count : begin + kBlock, cut);
    return mass;
}

inline constexpr int kNumBuckets = static_cast<int>(kNumKeys >> 18);  // of the first round: 32 for each power of two

struct Bucket {
    int64_t count;
    int64_t mass;
};

RL_INLINE void count_in(Bucket* buckets, float share, uint32_t prefix, int prefix_shift, int shift, uint32_t mask) {
    uint32_t bits;
    std::memcpy(&bits, &share, sizeof bits);
    const uint32_t key = kOneBits - bits;
    if (key >= kNumKeys || (key >> prefix_shift) != prefix) return;
    Bucket& bucket = buckets[(key >> shift) & mask];
    ++bucket.count;
    bucket.mass += weight_of(share);
}

// One round of the selection: tokens whose key begins as `prefix` says are counted by the next bits of it. In all rounds
// but the first those are few, and are looked for by vectors.
static void fill_buckets(const Shares& shares, uint32_t prefix, int prefix_shift, int shift, uint32_t mask, Bucket* buckets) {
    int64_t i = 0;
    if (prefix_shift < 31)
        for (; i + kLanes <= shares.count; i += kLanes) {
            const VecBits key = kOneBits - (VecBits)bits_of(load(shares.values + i));
            for (uint32_t lanes = lanes_of((VecBits)((key >> prefix_shift) == prefix)); lanes != 0; lanes &= lanes - 1)
                count_in(buckets, shares.values[i + __builtin_ctz(lanes)], prefix, prefix_shift, shift, mask);
        }
    for (; i < shares.count; ++i) count_in(buckets, shares.values[i], prefix, prefix_shift, shift, mask);
}

// The shortest prefix, likeliest first (the lower index first on ties), of `count` tokens or of mass `mass`, whichever is
// reached first; all tokens when neither is. Three rounds over the bits of the shares: 5 + 6, 10, 8.
static Cut shortest(const Shares& shares, int64_t count, int64_t mass, Bucket* buckets) {
    int64_t counted = 0, weighed = 0;
    uint32_t prefix = 0;
    int prefix_shift = 31;
    for (const int shift : {18, 8, 0}) {
        const int num_buckets = prefix_shift == 31 ? kNumBuckets : 1 << (prefix_shift - shift);
        const uint32_t mask = prefix_shift == 31 ? 0xffffffffu : static_cast<uint32_t>(num_buckets - 1);
        std::memset(buckets, 0, static_cast<size_t>(num_buckets) * sizeof(Bucket));
        fill_buckets(shares, prefix, prefix_shift, shift, mask, buckets);
        int bucket = 0;
        while (bucket < num_buckets && counted + buckets[bucket].count < count && weighed + buckets[bucket].mass < mass) {
            counted += buckets[bucket].count;
            weighed += buckets[bucket].mass;
            ++bucket;
        }
        if (bucket == num_buckets) return {0.0f, shares.count, shares.mass};  // only in the first round
        prefix = prefix_shift == 31 ? static_cast<uint32_t>(bucket) : (prefix << (prefix_shift - shift)) | static_cast<uint32_t>(bucket);
        prefix_shift = shift;
    }
    const uint32_t bits = kOneBits - prefix;
    float least;
    std::memcpy(&least, &bits, sizeof least);
    const int64_t weight = weight_of(least);
    int64_t index = 0;
    for (;; ++index) {  // the equal ones, by index, until it is reached
        if (shares.values[index] != least) continue;
        ++counted;
        weighed += weight;
        if (counted >= count || weighed >= mass) break;
    }
    return {least, index, weighed};
}

// min_p and top_k.
static Cut cut_by_rank(const Shares& shares, const SampleRow& row, Bucket* buckets) {
    Cut cut = {0.0f, shares.count, shares.mass};
    if (row.min_p > 0) {
        cut.least = row.min_p;
        cut.mass = mass_of(shares.values, shares.count, cut);
    }
    if (row.top_k > 0 && row.top_k < shares.count) {
        const Cut likeliest = shortest(shares, row.top_k, INT64_MAX, buckets);
        if (likeliest.mass < cut.mass) cut = likeliest;
    }
    return cut;
}

// The mass that top_p asks for, of what is left.
static inline int64_t mass_needed(double top_p, int64_t left) {
    const int64_t needed = static_cast<int64_t>(std::ceil(top_p * static_cast<double>(left)));
    return needed < 1 ? 1 : needed < left ? needed : left;
}

// ---- The draw ----

// The first token kept at which the running sum of weights passes `target` (which is below cut.mass).
static int64_t walk(const float* shares, int64_t count, const Cut& cut, int64_t target) {
    int64_t reached = 0;
    for (int64_t begin = 0; begin < count; begin += kBlock) {
        const int64_t mass = mass_of_block(shares, begin, count - begin < kBlock ? count : begin + kBlock, cut);
        if (reached + mass <= target) {
            reached += mass;
            continue;
        }
        for (int64_t i = begin;; ++i) {
            if (shares[i] < cut.least || (shares[i] == cut.least && i > cut.last)) continue;
            reached += weight_of(shares[i]);
            if (reached > target) return i;
        }
    }
    return -1;  // not reached
}

static inline int64_t target_of(double number, int64_t mass) {
    const int64_t target = static_cast<int64_t>(number * static_cast<double>(mass));
    return target < mass ? target : mass - 1;
}

static int32_t draw_from(const Shares& shares, Cut cut, double top_p, double number, Bucket* buckets) {
    if (top_p < 1) cut = shortest(shares, INT64_MAX, mass_needed(top_p, cut.mass), buckets);
    return static_cast<int32_t>(walk(shares.values, shares.count, cut, target_of(number, cut.mass)));
}

// What a thread works with, in its scratch.
struct SampleSpace {
    float* shares;       // [width]
    int32_t* ids;        // [width]
    int64_t* masses;     // [blocks]
    Bucket* buckets;     // [kNumBuckets]
    uint8_t* seen;       // [width] bytes
};

// Without truncation: the masses of the blocks lead to the one in which the number falls.
static int32_t draw_any(const Scaled& x, double number, const SampleSpace& space) {
    int64_t mass = 0;
    for (int64_t begin = 0; begin < x.width; begin += kBlock)
        mass += space.masses[begin / kBlock] = for_block(x, begin, [](Vec, int64_t) {});
    int64_t target = target_of(number, mass), begin = 0;
    for (; target >= space.masses[begin / kBlock]; begin += kBlock) target -= space.masses[begin / kBlock];
    for_block(x, begin, [&](Vec share, int64_t first) { store(space.shares + (first - begin), share); });
    int64_t i = 0;
    while ((target -= weight_of(space.shares[i])) >= 0) ++i;
    return static_cast<int32_t>(begin + i);
}

// -1 where the tokens with shares of `least` and more do not decide.
static int32_t draw_from_head(const Scaled& x, const SampleRow& row, float least, double number, const SampleSpace& space) {
    Head head = {space.shares, space.ids, 0, least};
    int64_t mass = 0;
    for (int64_t begin = 0; begin < x.width; begin += kBlock)
        mass += for_block(x, begin, [&](Vec share, int64_t first) { Head::take(head, share, first); });
    Shares likely = {head.shares, head.size, 0};
    likely.mass = mass_of(likely.values, likely.count, {0.0f, likely.count, 0});
    const bool whole = likely.mass == mass;
    const bool limited = row.top_k > 0 && row.top_k < x.width;
    Cut cut = {0.0f, likely.count, mass};
    if (row.min_p > 0 || limited) {
        if (!whole && !(row.min_p >= least) && !(limited && row.top_k <= likely.count)) return -1;
        cut = cut_by_rank(likely, row, space.buckets);
    } else if (mass_needed(row.top_p, mass) > likely.mass) {
        return -1;
    }
    return space.ids[draw_from(likely, cut, row.top_p, number, space.buckets)];
}

inline constexpr int64_t kChunk = 64;

// Floats in order as integers in order.
static inline int32_t ordered(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

// The largest value that at least `count` (<= size) of the keys reach, by bisection.
static int32_t reached_by(const int32_t* keys, int64_t size, int64_t count) {
    int64_t low = INT32_MIN, high = INT32_MAX;
    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2;
        int32_t reaching = 0;
        for (int64_t i = 0; i < size; ++i) reaching += keys[i] >= static_cast<int32_t>(middle);
        if (reaching >= count) low = middle;
        else high = middle - 1;
    }
    return static_cast<int32_t>(low);
}

// top_k without the mass of the row: k chunks have a logit of `bound` or more, so the k likeliest tokens are among those
// that reach it, and only these become shares. Shares are rounded: the bound is lowered by far more than that.
static int32_t draw_from_top(const Scaled& x, const SampleRow& row, double number, const SampleSpace& space) {
    const int64_t num_chunks = x.width / kChunk;
    int32_t* keys = space.ids;
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
        Vec largest = load(x.x + chunk * kChunk);
        for (int64_t i = kLanes; i < kChunk; i += kLanes) largest = max(largest, load(x.x + chunk * kChunk + i));
        keys[chunk] = ordered(reduce_max(largest));
    }
    const int32_t key = reached_by(keys, num_chunks, row.top_k);
    const int32_t bits = key ^ ((key >> 31) & 0x7fffffff);
    float bound;
    std::memcpy(&bound, &bits, sizeof bound);
    bound -= 1e-4f / x.scale + 1e-6f * std::fabs(bound);

    Head head = {space.shares, space.ids, 0, 0.0f};
    for_each_vec(x.width, [&](int64_t i, int64_t count) {
        const Vec logits = load_partial(x.x + i, count);
        uint32_t lanes = lanes_of((VecBits)(logits >= splat(bound)));
        if (count < kLanes) lanes &= (1u << count) - 1;
        if (lanes != 0) Head::take_lanes(head, share_of((logits - splat(x.largest)) * splat(x.scale)), lanes, i);
    });
    Shares likely = {head.shares, head.size, 0};
    likely.mass = mass_of(likely.values, likely.count, {0.0f, likely.count, 0});
    return space.ids[draw_from(likely, cut_by_rank(likely, row, space.buckets), row.top_p, number, space.buckets)];
}

static int32_t draw_row(const Scaled& x, const SampleRow& row, double number, const SampleSpace& space) {
    const bool limited = row.top_k > 0 && row.top_k < x.width;
    if (!(row.min_p > 0) && !limited && row.top_p >= 1) return draw_any(x, number, space);
    if (limited && row.top_k <= x.width / kChunk) return draw_from_top(x, row, number, space);
    for (const float least : {0x1p-10f, 0x1p-20f}) {
        const int32_t token = draw_from_head(x, row, least, number, space);
        if (token >= 0) return token;
    }
    return draw_from_head(x, row, 0.0f, number, space);
}

// ---- Penalties ----

// Repetition over all tokens (once each), presence over the generated ones (once each), frequency for every occurrence.
static void penalize(float* x, int64_t width, const SampleRow& row, const int32_t* tokens, int64_t length, uint8_t* seen) {
    const auto inside = [&](int64_t i) { return tokens[i] >= 0 && tokens[i] < width; };
    if (row.repetition_penalty != 1.0f) {
        std::memset(seen, 0, static_cast<size_t>(width));
        for (int64_t i = 0; i < length; ++i)
            if (inside(i) && !seen[tokens[i]]) {
                seen[tokens[i]] = 1;
                float& logit = x[tokens[i]];
                logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
            }
    }
    if (row.presence_penalty != 0.0f) {
        std::memset(seen, 0, static_cast<size_t>(width));
        for (int64_t i = row.num_prompt; i < length; ++i)
            if (inside(i) && !seen[tokens[i]]) {
                seen[tokens[i]] = 1;
                x[tokens[i]] -= row.presence_penalty;
            }
    }
    if (row.frequency_penalty != 0.0f)
        for (int64_t i = row.num_prompt; i < length; ++i)
            if (inside(i)) x[tokens[i]] -= row.frequency_penalty;
}

static SampleSpace sample_space(Team& team, int64_t width) {
    const size_t padded = static_cast<size_t>(width + kBlock), blocks = padded / kBlock + 1;
    char* at = static_cast<char*>(team.scratch(padded * 9 + blocks * 8 + kNumBuckets * sizeof(Bucket)));
    SampleSpace space;
    space.buckets = reinterpret_cast<Bucket*>(at);
    space.masses = reinterpret_cast<int64_t*>(at += kNumBuckets * sizeof(Bucket));
    space.shares = reinterpret_cast<float*>(at += blocks * 8);
    space.ids = reinterpret_cast<int32_t*>(at += padded * 4);
    space.seen = reinterpret_cast<uint8_t*>(at + padded * 4);
    return space;
}

static void sample(const SampleArgs& args, Team& team) {
    const SampleSpace space = sample_space(team, args.width);
    const Range share = team.share(args.num_rows);
    for (int64_t r = share.begin; r < share.end; ++r) {
        const SampleRow& row = args.rows[r];
        float* x = args.logits + r * args.width;
        penalize(x, args.width, row, args.tokens + args.slots[r] * args.tokens_stride, args.lengths[r], space.seen);
        int32_t token = argmax_row(x, args.width);
        if (token >= 0 && !std::isfinite(x[token])) token = -1;
        if (token >= 0 && row.scale > 0) {
            const double number = philox_uniform(row.seed, static_cast<uint64_t>(args.lengths[r]));
            token = draw_row({x, args.width, x[token], row.scale}, row, number, space);
        }
        args.chosen[r] = token;
    }
}

// ---- Log probabilities ----

// Ids of the `count` largest by insertion into a short sorted list; nearly all logits are below its end.
static void top_of(const float* x, int64_t width, int64_t count, int32_t* ids) {
    int64_t size = 0;
    for (int64_t i = 0; i < width; ++i) {
        if (size == count) {
            while (i + kLanes <= width && reduce_max(load(x + i)) <= x[ids[count - 1]]) i += kLanes;
            if (i >= width) return;
            if (!(x[i] > x[ids[count - 1]])) continue;
        }
        int64_t at = size < count ? size++ : count - 1;
        for (; at > 0 && x[ids[at - 1]] < x[i]; --at) ids[at] = ids[at - 1];
        ids[at] = static_cast<int32_t>(i);
    }
}

static void measure_logprobs(const LogprobArgs& args, Team& team) {
    const Range share = team.share(args.num_rows);
    for (int64_t r = share.begin; r < share.end; ++r) {
        const float* x = args.logits + args.rows[r] * args.width;
        const int32_t likeliest = argmax_row(x, args.width);
        if (likeliest < 0 || !std::isfinite(x[likeliest])) {
            args.mass[r] = -1;
            continue;
        }
        const float largest = x[likeliest], own = x[args.tokens[r]];
        int64_t mass = 0, above = 0;
        const Scaled row = {x, args.width, largest, 1.44269504f};
        for (int64_t begin = 0; begin < args.width; begin += kBlock) mass += for_block(row, begin, [](Vec, int64_t) {});
        for (int64_t i = 0; i < args.tokens[r]; ++i) above += x[i] >= own;
        for (int64_t i = args.tokens[r]; i < args.width; ++i) above += x[i] > own;
        args.mass[r] = mass;
        args.above[r] = static_cast<int32_t>(above);
        if (args.num_top > 0) top_of(x, args.width, args.num_top, args.top_ids + r * args.num_top);
    }
}

}  // namespace ridgeline::RL_TIER
