// Softmax of one chunk of scores, and the merge of chunks.
//
// The result of a query row is defined chunk by chunk (kAttentionChunk positions counted from position 0): each chunk has its own
// maximum m, sum l = sum_p 2^(s_p - m) and values t = sum_p 2^(s_p - m) v_p, and chunks are merged in order of
// position (Milakov & Gimelshein 2018; Dao et al. 2022):
//
//   M' = max(M, m)    L' = L 2^(M - M') + l 2^(m - M')    O' = O 2^(M - M') + t 2^(m - M')       y = O / L at the end
//
// So any thread may compute any chunk, and a row's bits depend on nothing but the row. A chunk without a visible position
// has l = 0 and is skipped. Scores come multiplied by log2(e). Floor: about 13 vector instructions per kLanes scores.
#pragma once

#include "simd.hpp"
#include "vector_math.hpp"

namespace ridgeline::RL_TIER {

inline constexpr int64_t kAttentionChunk = 256;

// Positions of a chunk, counted from its start.
struct Span {
    int64_t begin;
    int64_t end;
};

// All bits set in the lanes i with begin <= at + i < end.
RL_INLINE VecInt lanes_within(int64_t at, Span span) {
    VecInt lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    lane += static_cast<int32_t>(at);
    return (lane >= static_cast<int32_t>(span.begin)) & (lane < static_cast<int32_t>(span.end));
}

RL_INLINE Vec select(VecInt mask, Vec yes, Vec no) { return from_bits((bits_of(yes) & mask) | (bits_of(no) & ~mask)); }

// Calls body(at, is_edge) for the vectors that touch `span`, from one aligned to the chunk; edges have lanes outside of it.
template <class Body>
RL_INLINE void for_each_visible(Span span, Body body) {
    int64_t at = span.begin / kLanes * kLanes;
    if (at < span.begin) {
        body(at, true);
        at += kLanes;
    }
    for (; at + kLanes <= span.end; at += kLanes) body(at, false);
    if (at < span.end) body(at, true);
}

// s -> cap * log2(e) * tanh(s / cap)
RL_INLINE void cap_scores(float* scores, Span visible, float softcap) {
    const Vec inverse = splat(1.0f / softcap);
    const Vec factor = splat(softcap * 1.44269504f);
    for_each_visible(visible, [&](int64_t at, bool) { store(scores + at, factor * tanh(inverse * load(scores + at))); });
}

// What the scales of an int8 cache's keys (kv_int8.hpp) have left undone.
RL_INLINE void scale_scores(float* scores, Span visible, const float* scales) {
    for_each_visible(visible, [&](int64_t at, bool) { store(scores + at, load(scores + at) * load(scales + at)); });
}

// Of a row's chunk: the largest visible score, and the sum of 2^(score - maximum); {0, 0} if nothing is visible.
struct ChunkSoftmax {
    float maximum;
    float sum;
};

RL_INLINE float largest_score(const float* scores, Span visible) {
    const Vec lowest = splat(-__builtin_inff());
    Vec largest = lowest;
    for_each_visible(visible, [&](int64_t at, bool is_edge) {
        const Vec s = load(scores + at);
        largest = max(largest, is_edge ? select(lanes_within(at, visible), s, lowest) : s);
    });
    return reduce_max(largest);
}

RL_INLINE void clear_probabilities(uint16_t* probabilities, int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kLanes) store_bf16(probabilities + at, zero());
}

// The scores of one row become 2^(score - maximum), as bf16 in the first half of the same memory (a vector is read before its place
// is written), and zero in `computed` outside of `visible`. `computed` is a multiple of 16 at both ends. What is stored goes
// through `weigh(at, p)`; the sum that is returned does not.
template <class Weigh>
RL_INLINE float exponentiate_in_place(float* scores, float maximum, Span computed, Span visible, Weigh weigh) {
    uint16_t* probabilities = reinterpret_cast<uint16_t*>(scores);
    clear_probabilities(probabilities, computed.begin, visible.begin / kLanes * kLanes);
    Vec sum = zero();
    const Vec shift = splat(maximum);
    for_each_visible(visible, [&](int64_t at, bool is_edge) {
        Vec p = exp2_within(max(splat(-126.0f), load(scores + at) - shift));
        Vec weighed = weigh(at, p);
        if (is_edge) {
            p = select(lanes_within(at, visible), p, zero());
            weighed = select(lanes_within(at, visible), weighed, zero());
        }
        sum += p;
        store_bf16(probabilities + at, weighed);
    });
    clear_probabilities(probabilities, (visible.end + kLanes - 1) / kLanes * kLanes, computed.end);
    return reduce_add(sum);
}

// A row's running result: start from maximum = -inf, sum = 0, values = 0.
RL_INLINE void merge_chunk(ChunkSoftmax& total, float* values, ChunkSoftmax chunk, const float* chunk_values, int64_t head_dim) {
    if (chunk.sum == 0.0f) return;
    const float maximum = total.maximum > chunk.maximum ? total.maximum : chunk.maximum;
    const Vec keep = exp2(splat(total.maximum - maximum));
    const Vec take = exp2(splat(chunk.maximum - maximum));
    const float keep_one = keep[0], take_one = take[0];
    total.maximum = maximum;
    total.sum = total.sum * keep_one + chunk.sum * take_one;
    for (int64_t d = 0; d < head_dim; d += kLanes)
        store(values + d, fma(load(values + d), keep, load(chunk_values + d) * take));
}

}  // namespace ridgeline::RL_TIER
