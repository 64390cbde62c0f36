// Python's view of the cache and attention kernels of each tier, for tests. A step runs them from the tape.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <vector>

#include "isa.hpp"
#include "kernel_table.hpp"
#include "thread_pool.hpp"

namespace nb = nanobind;

namespace ridgeline {

namespace {

using Pages = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MutableRows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tables = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

const KernelTable& table_for(const ThreadPool& pool, const std::string& tier) {
    const KernelTable& table = tier.empty() ? kernels() : kernels_of(tier);
    if (!pool.enters_with(table.enter_region)) refuse(std::string("pool: made for another tier than ") + table.name);
    return table;
}

KvLayer layer_of(const Pages& pages, int64_t slot, int64_t num_kv_heads, int64_t head_dim, int64_t block_size, bool int8) {
    if (head_dim < 16 || head_dim % 16 != 0 || head_dim > kMaxHeadDim) refuse("head_dim: must be a multiple of 16 up to 1024");
    if (block_size < 16 || block_size % 16 != 0 || block_size > 1024) refuse("block_size: must be a multiple of 16 up to 1024");
    if (num_kv_heads < 1 || num_kv_heads > 1024) refuse("num_kv_heads: must be within 1..1024");
    const int64_t page_bytes = static_cast<int64_t>(pages.shape(1));
    if (slot < 0 || slot >= page_bytes || (slot + 1) * num_kv_heads * kv_head_bytes(head_dim, block_size, int8) > page_bytes)
        refuse("slot: beyond the page");
    return {pages.data(), page_bytes, slot, num_kv_heads, head_dim, block_size, int8};
}

// Blocks that no token of the step sees (before its window; window 0: none) may have any number.
StepRows rows_of(const Pages& pages, int64_t block_size, const Ints& row_starts, const Ints& context_before, const Tables& tables,
                 int64_t num_tokens, int64_t window) {
    const size_t num_requests = context_before.size();
    if (row_starts.size() != num_requests + 1) refuse("row_starts: one more than context_before");
    if (tables.shape(0) != num_requests) refuse("block_tables: one row per request");
    if (row_starts.data()[0] != 0 || row_starts.data()[num_requests] != num_tokens) refuse("row_starts: must go from 0 to the number of tokens");
    const int64_t width = static_cast<int64_t>(tables.shape(1)), num_blocks = static_cast<int64_t>(pages.shape(0));
    for (size_t r = 0; r < num_requests; ++r) {
        const int64_t count = int64_t{row_starts.data()[r + 1]} - row_starts.data()[r], before = context_before.data()[r];
        if (count < 0) refuse("row_starts: must ascend");
        if (before < 0 || before + count > width * block_size) refuse("block_tables: too narrow for request " + std::to_string(r));
        const int64_t first = window > 0 && before >= window ? before - window + 1 : 0;
        for (int64_t i = first / block_size; i * block_size < before + count; ++i) {
            const int32_t block = tables.data()[static_cast<int64_t>(r) * width + i];
            if (block < 0 || block >= num_blocks) refuse("block_tables: block " + std::to_string(block) + " is not in the pool");
        }
    }
    return {row_starts.data(), context_before.data(), tables.data(), static_cast<int64_t>(num_requests), width};
}

void kv_write(ThreadPool& pool, const Pages& pages, int64_t slot, int64_t num_kv_heads, int64_t head_dim, int64_t block_size,
              const Ints& row_starts, const Ints& context_before, const Tables& tables, const Rows& keys, const Rows& values,
              bool int8, const std::string& tier) {
    const KvLayer layer = layer_of(pages, slot, num_kv_heads, head_dim, block_size, int8);
    const int64_t num_tokens = static_cast<int64_t>(keys.shape(0)), width = num_kv_heads * head_dim;
    if (static_cast<int64_t>(keys.shape(1)) != width || values.shape(0) != keys.shape(0) || values.shape(1) != keys.shape(1))
        refuse("keys, values: must be [tokens, num_kv_heads * head_dim]");
    const KvWriteArgs args = {layer, rows_of(pages, block_size, row_starts, context_before, tables, num_tokens, 1),
                              keys.data(), width, values.data(), width};
    void (*kernel)(const KvWriteArgs&, Team&) = table_for(pool, tier).kv_write;
    const nb::gil_scoped_release release;
    pool.parallel([&](Team& team) { kernel(args, team); });
}

void attention(ThreadPool& pool, const Pages& pages, int64_t slot, int64_t num_kv_heads, int64_t head_dim, int64_t block_size,
               const Ints& row_starts, const Ints& context_before, const Tables& tables, const Rows& q, const MutableRows& y,
               float scale, int64_t window, float softcap, int64_t workspace_floats, bool int8, const std::string& tier) {
    const KvLayer layer = layer_of(pages, slot, num_kv_heads, head_dim, block_size, int8);
    const int64_t num_tokens = static_cast<int64_t>(q.shape(0)), width = static_cast<int64_t>(q.shape(1));
    if (width == 0 || width % (num_kv_heads * head_dim) != 0) refuse("q: rows must be a multiple of num_kv_heads * head_dim");
    if (y.shape(0) != q.shape(0) || y.shape(1) != q.shape(1)) refuse("y: not of q's shape");
    if (window < 0) refuse("window: must be positive, or 0 for none");
    if (workspace_floats < 0 || workspace_floats > (int64_t{1} << 30)) refuse("workspace_floats: must be within 0..2^30");
    const StepRows rows = rows_of(pages, block_size, row_starts, context_before, tables, num_tokens, window);
    std::vector<float> workspace(static_cast<size_t>(workspace_floats));
    const AttentionArgs args = {layer, rows, q.data(), width, y.data(), width, width / head_dim, scale, window, softcap,
                                workspace_floats > 0 ? workspace.data() : nullptr, workspace_floats};
    void (*kernel)(const AttentionArgs&, Team&) = table_for(pool, tier).attention;
    const nb::gil_scoped_release release;
    pool.parallel([&](Team& team) { kernel(args, team); });
}

}  // namespace

void bind_attention(nb::module_& module) {
    module.def("kv_write", &kv_write, nb::arg("pool"), nb::arg("pages"), nb::arg("slot"), nb::arg("num_kv_heads"), nb::arg("head_dim"),
               nb::arg("block_size"), nb::arg("row_starts"), nb::arg("context_before"), nb::arg("block_tables"), nb::arg("keys"),
               nb::arg("values"), nb::arg("int8") = false, nb::arg("tier") = "",
               "Writes [tokens, num_kv_heads * head_dim] keys and values of a ragged step into pages [num_blocks, page_bytes] uint8.");
    module.def("attention", &attention, nb::arg("pool"), nb::arg("pages"), nb::arg("slot"), nb::arg("num_kv_heads"), nb::arg("head_dim"),
               nb::arg("block_size"), nb::arg("row_starts"), nb::arg("context_before"), nb::arg("block_tables"), nb::arg("q"), nb::arg("y"),
               nb::arg("scale"), nb::arg("window") = 0, nb::arg("softcap") = 0.0f, nb::arg("workspace_floats") = 0, nb::arg("int8") = false,
               nb::arg("tier") = "",
               "y = causal attention of q [tokens, num_heads * head_dim] over the pages; window 0: none, softcap 0: none.");
}

}  // namespace ridgeline
