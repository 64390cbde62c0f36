// Python's view of sampling: all rows of a step in one call, and their log probabilities in another.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include "isa.hpp"
#include "kernel_table.hpp"
#include "philox.hpp"
#include "thread_pool.hpp"

namespace nb = nanobind;

namespace ridgeline {

namespace {

using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MutableLogits = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Records = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableIds = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableTable = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Masses = nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

const KernelTable& table_for(const ThreadPool& pool, const std::string& tier) {
    const KernelTable& table = tier.empty() ? kernels() : kernels_of(tier);
    if (!pool.enters_with(table.enter_region)) refuse(std::string("pool: made for another tier than ") + table.name);
    return table;
}

// Every id within 0 .. limit - 1.
void check_ids(const char* name, const int32_t* ids, size_t count, int64_t limit) {
    for (size_t i = 0; i < count; ++i)
        if (ids[i] < 0 || ids[i] >= limit) refuse(std::string(name) + ": " + std::to_string(ids[i]) + " is not below " + std::to_string(limit));
}

void sample(ThreadPool& pool, const MutableLogits& logits, const Records& rows, const Table& tokens, const Ids& slots, const Ids& lengths,
            const MutableIds& chosen, const std::string& tier) {
    const size_t num_rows = logits.shape(0);
    if (logits.shape(1) < 1) refuse("logits: rows must not be empty");
    if (rows.shape(0) != num_rows || rows.shape(1) != sizeof(SampleRow)) refuse("rows: one record of " + std::to_string(sizeof(SampleRow)) + " bytes per row of logits");
    if (reinterpret_cast<uintptr_t>(rows.data()) % alignof(SampleRow) != 0) refuse("rows: not aligned");
    if (slots.size() != num_rows || lengths.size() != num_rows || chosen.size() != num_rows) refuse("slots, lengths and chosen: one per row of logits");
    check_ids("slots", slots.data(), num_rows, static_cast<int64_t>(tokens.shape(0)));
    check_ids("lengths", lengths.data(), num_rows, static_cast<int64_t>(tokens.shape(1)) + 1);
    const SampleRow* records = reinterpret_cast<const SampleRow*>(rows.data());
    for (size_t i = 0; i < num_rows; ++i)
        if (records[i].num_prompt < 0) refuse("rows: num_prompt below 0");
    const SampleArgs args = {logits.data(), static_cast<int64_t>(logits.shape(1)), static_cast<int64_t>(num_rows), records,
                             tokens.data(), static_cast<int64_t>(tokens.shape(1)), slots.data(), lengths.data(), chosen.data()};
    const KernelTable& table = table_for(pool, tier);
    const nb::gil_scoped_release release;
    pool.parallel([&](Team& team) { table.sample(args, team); });
}

void measure_logprobs(ThreadPool& pool, const Logits& logits, const Ids& rows, const Ids& tokens, const Masses& mass, const MutableIds& above,
                      const MutableTable& top_ids, const std::string& tier) {
    const size_t num_rows = rows.size();
    if (tokens.size() != num_rows || mass.size() != num_rows || above.size() != num_rows || top_ids.shape(0) != num_rows)
        refuse("tokens, mass, above and top_ids: one per row");
    if (top_ids.shape(1) > logits.shape(1)) refuse("top_ids: more columns than logits");
    check_ids("rows", rows.data(), num_rows, static_cast<int64_t>(logits.shape(0)));
    check_ids("tokens", tokens.data(), num_rows, static_cast<int64_t>(logits.shape(1)));
    const LogprobArgs args = {logits.data(), static_cast<int64_t>(logits.shape(1)), static_cast<int64_t>(num_rows), rows.data(), tokens.data(),
                              static_cast<int64_t>(top_ids.shape(1)), mass.data(), above.data(), top_ids.data()};
    const KernelTable& table = table_for(pool, tier);
    const nb::gil_scoped_release release;
    pool.parallel([&](Team& team) { table.measure_logprobs(args, team); });
}

}  // namespace

void bind_sample(nb::module_& module) {
    module.def("sample", &sample, nb::arg("pool"), nb::arg("logits"), nb::arg("rows"), nb::arg("tokens"), nb::arg("slots"), nb::arg("lengths"),
               nb::arg("chosen"), nb::arg("tier") = "",
               "chosen[r] = the token drawn from logits[r] as rows[r] says (runtime/sampler.py's ROW as bytes); -1: not finite. "
               "tokens[slots[r], :lengths[r]] are the request's, for penalties, which are written into the logits.");
    module.def("measure_logprobs", &measure_logprobs, nb::arg("pool"), nb::arg("logits"), nb::arg("rows"), nb::arg("tokens"), nb::arg("mass"),
               nb::arg("above"), nb::arg("top_ids"), nb::arg("tier") = "",
               "For logits[rows[i]]: the sum of weights at temperature 1 in units of 2^-40, how many tokens come before tokens[i], the likeliest ids. mass -1: not finite.");
    module.def("philox_uniform", &philox_uniform, nb::arg("seed"), nb::arg("position"), "The random number of (seed, position), in [0, 1).");
}

}  // namespace ridgeline
