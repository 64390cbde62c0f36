// One step of a model as a list of kernel calls over an arena, recorded once and replayed by one native call.
//
//   record   Python walks the model's `forward`, fuses, lays values out in the arena, and appends ops (ridgeline/runtime/native)
//   step     one parallel region: every thread runs every op on its share, with a barrier after each
//
// An op's shapes are fixed but for the number of rows: the step's tokens, or those whose logits are wanted.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "kernel_table.hpp"
#include "matrix.hpp"
#include "memory.hpp"
#include "thread_pool.hpp"

namespace ridgeline {

// Pages of the KV cache (layout: kv_cache.hpp), zeroed when made.
struct KvPool {
    Buffer pages;
    int64_t num_blocks, layers_per_page, num_kv_heads, head_dim, block_size;
    bool is_int8;

    int64_t page_bytes() const { return layers_per_page * num_kv_heads * kv_head_bytes(head_dim, block_size, is_int8); }
    KvLayer layer(int64_t slot) const { return {pages.data(), page_bytes(), slot, num_kv_heads, head_dim, block_size, is_int8}; }
};

// Float32 values that ops read: a norm's weights, a table of angles.
struct Constant {
    Buffer values;
    int64_t num_values;
};

// A place in the arena: `offset` bytes from its start, rows `stride` floats (of quantised rows: bytes) apart.
struct Place {
    int64_t offset;
    int64_t stride;
};

// What changes from step to step. Checked by the binding.
struct StepInputs {
    int64_t num_tokens;
    int64_t num_logit_rows;
    const int32_t* token_ids;
    const int32_t* positions;
    const int32_t* logit_rows;
    int64_t num_requests;
    const int32_t* row_starts;
    const int32_t* context_before;
    std::vector<const int32_t*> block_tables;  // of each group, [num_requests, table_widths[group]]
    std::vector<int64_t> table_widths;
    float* logits;  // [num_logit_rows, vocab]
};

struct AttentionShape {
    int64_t group;
    int64_t slot;
    int64_t num_heads;
    float scale;
    int64_t window;  // 0: none
    float softcap;   // 0: none
};

class Tape {
public:
    Tape(const KernelTable& kernels, ThreadPool& pool, int64_t arena_bytes, int64_t workspace_floats);

    void embed(const Matrix& table, float scale, Place y);
    void rms_norm(Place x, Place y, const Constant& weight, int64_t num_groups, float eps, bool on_logit_rows);
    void add(Place x, Place z, Place y, int64_t width, bool on_logit_rows);
    void rope(Place x, int64_t num_heads, int64_t head_dim, int64_t rotary_dim, const Constant& cos, const Constant& sin);
    void attention(Place q, Place k, Place v, Place y, const KvPool& cache, const AttentionShape& shape);
    // Rows y[i] = x[logit_rows[i]].
    void select(Place x, Place y, int64_t width);
    void quantize(Place x, Place rows, const Matrix& consumer, const Constant* norm_weight, float eps, bool on_logit_rows);
    void linear(Place rows, const Matrix& weight, Place y, Epilogue epilogue, const Place* residual, bool on_logit_rows);
    // The product goes to the step's logits; softcap 0: none.
    void logits(Place rows, const Matrix& head, float softcap);

    void step(const StepInputs& inputs);

    int64_t arena_bytes() const { return static_cast<int64_t>(arena_.num_bytes()); }
    size_t num_ops() const { return ops_.size(); }
    // Nanoseconds that thread 0 has spent in each op, and waiting after it, since `measure(true)`.
    void measure(bool on);
    const std::vector<int64_t>& nanoseconds() const { return nanoseconds_; }
    const std::vector<const char*>& names() const { return names_; }

private:
    using Op = std::function<void(const StepInputs&, Team&)>;

    float* at(Place place) const { return reinterpret_cast<float*>(arena_.data() + place.offset); }
    void append(const char* name, Op op);

    const KernelTable& kernels_;
    ThreadPool& pool_;
    Buffer arena_;
    Buffer workspace_;
    std::vector<Op> ops_;
    std::vector<const char*> names_;
    std::vector<int64_t> nanoseconds_;
    bool measures_ = false;
};

}  // namespace ridgeline
