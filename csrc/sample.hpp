// The token of each row of logits: penalties, temperature, min_p, top_k, top_p and a draw, without sorting the vocabulary.
//
// ridgeline/runtime/sampler.py is the definition, and the token is the same to the last bit: a token's share
// 2^((logit - largest) * scale) is a float made of multiplications and additions that are rounded one by one, and its weight is
// that share in whole units of 2^-40. Weights add up exactly in any order, so neither lanes, tiers nor blocks can differ.
//
//     largest -> shares and the mass of each block -> Cut: the least share kept (radix selection) -> walk to the number drawn
//
// A row's Cut is nearly always found among its head, the tokens within 2^-10 of the likeliest.
// Floor: about 30 vector instructions for kLanes logits (the share and its weight), and the row is read twice from the cache.
#pragma once

#include <cmath>

#include "argmax.hpp"
#include "philox.hpp"
#include "sample_args.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"

namespace ridgeline::RL_TIER {

typedef uint64_t VecMass __attribute__((vector_size(sizeof(Vec))));
typedef uint32_t VecBits32 __attribute__((vector_size(sizeof(Vec))));

inline constexpr int64_t kBlock = 1024;             // tokens whose weights are added up together
inline constexpr float kHeadShare = 1.0f / 1024;    // 2^-10
inline constexpr uint32_t kOneBits = 0x3f800000;    // of the largest share, 1.0f
inline constexpr uint32_t kNumKeys = 41u << 23;     // 1.0f down to 2^-40: beyond, weights are 0

// ---- Shares and weights ----

// 2^x for x <= 0 (x below -60 counts as -60); no fused operation, so that every tier and numpy give the same bits.
RL_INLINE Vec share_of(Vec x) {
    x = max(splat(-60.0f), x);
    const Vec n = round_nearest(x);
    const Vec f = x - n;
    Vec p = splat(1.32647273e-3f);  // as exp2_within
    p = p * f + splat(9.67151299e-3f);
    p = p * f + splat(5.55073359e-2f);
    p = p * f + splat(2.40222424e-1f);
    p = p * f + splat(6.93147004e-1f);
    p = p * f + splat(1.0f);
    return p * power_of_two(n);
}

// A share in units of 2^-40, rounded down: its 24 bits, shifted by its exponent.
static inline int64_t weight_of(float share) {
    uint32_t bits;
    std::memcpy(&bits, &share, sizeof bits);
    const uint32_t shift = 127 - (bits >> 23);
    return shift > 63 ? 0 : static_cast<int64_t>((static_cast<uint64_t>((bits & 0x7fffff) | 0x800000) << 17) >> shift);
}

// The same for kLanes shares (each 2^-63 .. 1 or masked off by `kept`), the even lanes' weights added to the odd ones'.
RL_INLINE VecMass weights_of(Vec share, VecBits32 kept) {
    VecBits32 bits;
    std::memcpy(&bits, &share, sizeof bits);
    const VecBits32 digits = ((bits & 0x7fffff) | 0x800000) & kept;
    const VecBits32 shift = (127 - (bits >> 23)) & kept;
    VecMass digit_pairs, shift_pairs;
    std::memcpy(&digit_pairs, &digits, sizeof digits);
    std::memcpy(&shift_pairs, &shift, sizeof shift);
    const VecMass low = {}, mask = low + 0xffffffffu;
    return (((digit_pairs & mask) << 17) >> (shift_pairs & mask)) + (((digit_pairs >> 32) << 17) >> (shift_pairs >> 32));
}

static inline int64_t sum_of(VecMass mass) {
    uint64_t sum = 0;
    for (size_t lane = 0; lane < sizeof(VecMass) / 8; ++lane) sum += mass[lane];
    return static_cast<int64_t>(sum);
}

RL_INLINE VecBits32 all_lanes() { return VecBits32{} - 1; }

// The lanes below `count`.
RL_INLINE VecBits32 first_lanes(int64_t count) {
    uint32_t lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane < count ? 0xffffffffu : 0;
    VecBits32 mask;
    std::memcpy(&mask, lanes, sizeof mask);
    return mask;
}

// shares[i] = 2^((x[i] - largest) * scale); returns the mass.
static int64_t share_block(const float* x, int64_t count, float largest, float scale, float* shares) {
    VecMass mass = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const Vec share = share_of((load(x + i) - splat(largest)) * splat(scale));
        store(shares + i, share);
        mass += weights_of(share, all_lanes());
    }
    if (i < count) {
        const Vec share = share_of((load_partial(x + i, count - i) - splat(largest)) * splat(scale));
        store_partial(shares + i, share, count - i);
        mass += weights_of(share, first_lanes(count - i));
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

static int64_t mass_of(const float* shares, int64_t count, const Cut& cut, int64_t first) {
    VecMass mass = {};
    int64_t i = 0, rest = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const Vec share = load(shares + i);
        // Equal shares count in the vectors that are wholly at or before `last`.
        const float bound = first + i + kLanes - 1 <= cut.last ? cut.least : __builtin_inff();
        VecBits32 kept = (VecBits32)(share > splat(cut.least)) | (VecBits32)(share == splat(bound));
        if (first + i <= cut.last && first + i + kLanes - 1 > cut.last)
            kept |= (VecBits32)(share == splat(cut.least)) & first_lanes(cut.last - first - i + 1);
        mass += weights_of(share, kept);
    }
    for (; i < count; ++i)
        if (shares[i] > cut.least || (shares[i] == cut.least && first + i <= cut.last)) rest += weight_of(shares[i]);
    return sum_of(mass) + rest;
}

inline constexpr int kNumBuckets = static_cast<int>(kNumKeys >> 18);  // of the first round: 32 for each power of two

struct Bucket {
    int64_t count;
    int64_t mass;
};

// One round of the selection: tokens whose key begins as `prefix` says are counted by the next bits of it.
static void fill_buckets(const Shares& shares, uint32_t prefix, int prefix_shift, int shift, uint32_t mask, Bucket* buckets) {
    for (int64_t i = 0; i < shares.count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, shares.values + i, sizeof bits);
        const uint32_t key = kOneBits - bits;
        if (key >= kNumKeys || (key >> prefix_shift) != prefix) continue;
        Bucket& bucket = buckets[(key >> shift) & mask];
        ++bucket.count;
        bucket.mass += weight_of(shares.values[i]);
    }
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
        cut.mass = mass_of(shares.values, shares.count, cut, 0);
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
        const int64_t size = count - begin < kBlock ? count - begin : kBlock;
        const int64_t mass = mass_of(shares + begin, size, cut, begin);
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

// What a thread works with, in its scratch.
struct SampleSpace {
    float* shares;       // [width]
    float* head;         // [width]
    int32_t* head_ids;   // [width]
    int64_t* masses;     // [blocks]
    Bucket* buckets;     // [kNumBuckets]
    uint8_t* seen;       // [width] bytes
};

static int64_t gather_head(const float* shares, int64_t width, float* head, int32_t* ids) {
    int64_t size = 0, i = 0;
    for (; i + kLanes <= width; i += kLanes) {
        const Vec share = load(shares + i);
#if defined(__AVX512F__)
        const __mmask16 in_head = _mm512_cmp_ps_mask(share, splat(kHeadShare), _CMP_GE_OQ);
        if (in_head == 0) continue;
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i id = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(i)), lanes);
        _mm512_storeu_ps(head + size, _mm512_maskz_compress_ps(in_head, share));
        _mm512_storeu_si512(ids + size, _mm512_maskz_compress_epi32(in_head, id));
        size += __builtin_popcount(in_head);
#else
        if (reduce_max(share) < kHeadShare) continue;
        for (int64_t lane = i; lane < i + kLanes; ++lane)
            if (shares[lane] >= kHeadShare) {
                head[size] = shares[lane];
                ids[size++] = static_cast<int32_t>(lane);
            }
#endif
    }
    for (; i < width; ++i)
        if (shares[i] >= kHeadShare) {
            head[size] = shares[i];
            ids[size++] = static_cast<int32_t>(i);
        }
    return size;
}

static int32_t draw_from(const Shares& shares, Cut cut, double top_p, double number, Bucket* buckets) {
    if (top_p < 1) cut = shortest(shares, INT64_MAX, mass_needed(top_p, cut.mass), buckets);
    return static_cast<int32_t>(walk(shares.values, shares.count, cut, target_of(number, cut.mass)));
}

// Without truncation: the masses of the blocks lead to the one in which the number falls.
static int32_t draw_any(const Shares& shares, const int64_t* masses, double number) {
    int64_t target = target_of(number, shares.mass), block = 0;
    while (target >= masses[block]) target -= masses[block++];
    int64_t i = block * kBlock;
    while ((target -= weight_of(shares.values[i])) >= 0) ++i;
    return static_cast<int32_t>(i);
}

static int32_t draw_row(const float* x, int64_t width, float largest, const SampleRow& row, double number, const SampleSpace& space) {
    int64_t mass = 0;
    for (int64_t begin = 0, block = 0; begin < width; begin += kBlock, ++block) {
        const int64_t size = width - begin < kBlock ? width - begin : kBlock;
        space.masses[block] = share_block(x + begin, size, largest, row.scale, space.shares + begin);
        mass += space.masses[block];
    }
    const Shares all = {space.shares, width, mass};
    const bool by_rank = row.min_p > 0 || (row.top_k > 0 && row.top_k < width);
    if (!by_rank && row.top_p >= 1) return draw_any(all, space.masses, number);

    Shares head = {space.head, gather_head(space.shares, width, space.head, space.head_ids), 0};
    head.mass = mass_of(head.values, head.count, {0.0f, head.count, 0}, 0);
    const bool rank_in_head = row.min_p >= kHeadShare || (row.top_k > 0 && row.top_k <= head.count);
    if (rank_in_head) {
        const Cut cut = cut_by_rank(head, row, space.buckets);
        return space.head_ids[draw_from(head, cut, row.top_p, number, space.buckets)];
    }
    if (!by_rank && mass_needed(row.top_p, mass) <= head.mass)
        return space.head_ids[draw_from(head, {0.0f, head.count, mass}, row.top_p, number, space.buckets)];
    return draw_from(all, cut_by_rank(all, row, space.buckets), row.top_p, number, space.buckets);
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
    const size_t padded = static_cast<size_t>((width + 63) / 64 * 64 + 64), blocks = padded / kBlock + 8;
    char* at = static_cast<char*>(team.scratch(padded * 13 + blocks * 8 + kNumBuckets * sizeof(Bucket)));
    SampleSpace space;
    space.buckets = reinterpret_cast<Bucket*>(at);
    space.masses = reinterpret_cast<int64_t*>(at += kNumBuckets * sizeof(Bucket));
    space.shares = reinterpret_cast<float*>(at += blocks * 8);
    space.head = reinterpret_cast<float*>(at += padded * 4);
    space.head_ids = reinterpret_cast<int32_t*>(at += padded * 4);
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
            token = draw_row(x, args.width, x[token], row, number, space);
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
    float* shares = static_cast<float*>(team.scratch(kBlock * sizeof(float)));
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
        for (int64_t begin = 0; begin < args.width; begin += kBlock) {
            const int64_t size = args.width - begin < kBlock ? args.width - begin : kBlock;
            mass += share_block(x + begin, size, largest, 1.44269504f, shares);
            for (int64_t i = begin; i < begin + size; ++i) above += x[i] > own;
        }
        args.mass[r] = mass;
        args.above[r] = static_cast<int32_t>(above);
        if (args.num_top > 0) top_of(x, args.width, args.num_top, args.top_ids + r * args.num_top);
    }
}

}  // namespace ridgeline::RL_TIER
