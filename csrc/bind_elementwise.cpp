// Python's view of the element-wise kernels of each tier, for tests. A step runs them from the tape.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include "isa.hpp"
#include "kernel_table.hpp"
#include "thread_pool.hpp"

namespace nb = nanobind;

namespace ridgeline {

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MutableRows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MutableFloats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableIds = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

int64_t rows_of(const Rows& x) { return static_cast<int64_t>(x.shape(0)); }
int64_t width_of(const Rows& x) { return static_cast<int64_t>(x.shape(1)); }

const KernelTable& table_for(const ThreadPool& pool, const std::string& tier) {
    const KernelTable& table = tier.empty() ? kernels() : kernels_of(tier);
    if (!pool.enters_with(table.enter_region)) refuse(std::string("pool: made for another tier than ") + table.name);
    return table;
}

template <class Args>
void run(ThreadPool& pool, void (*kernel)(const Args&, Team&), const Args& args) {
    const nb::gil_scoped_release release;
    pool.parallel([&](Team& team) { kernel(args, team); });
}

void rms_norm(ThreadPool& pool, const Rows& x, const Floats& weight, float eps, const MutableRows& y, const std::string& tier) {
    const int64_t width = static_cast<int64_t>(weight.size());
    if (width == 0 || width_of(x) % width != 0) refuse("weight: its size must divide the rows of x");
    if (y.shape(0) != x.shape(0) || y.shape(1) != x.shape(1)) refuse("y: not of x's shape");
    const RmsNormArgs args = {x.data(), width_of(x), y.data(), width_of(x), weight.data(), width, width_of(x) / width, rows_of(x), eps};
    run(pool, table_for(pool, tier).rms_norm, args);
}

void rope(ThreadPool& pool, const MutableRows& x, const Rows& cos, const Rows& sin, const Ids& positions, int64_t head_dim,
          const std::string& tier) {
    const int64_t num_rows = static_cast<int64_t>(x.shape(0)), width = static_cast<int64_t>(x.shape(1));
    if (head_dim < 1 || width % head_dim != 0) refuse("head_dim: must divide the rows of x");
    const int64_t rotary_dim = 2 * width_of(cos);
    if (rotary_dim > head_dim) refuse("cos: more than half of head_dim");
    if (sin.shape(0) != cos.shape(0) || sin.shape(1) != cos.shape(1)) refuse("sin: not of cos's shape");
    if (static_cast<int64_t>(positions.size()) != num_rows) refuse("positions: one per row of x");
    for (size_t i = 0; i < positions.size(); ++i)
        if (positions.data()[i] < 0 || positions.data()[i] >= rows_of(cos)) refuse("positions: beyond the table");
    const RopeArgs args = {x.data(), width, width / head_dim, head_dim, rotary_dim, cos.data(), sin.data(), positions.data(), num_rows};
    run(pool, table_for(pool, tier).rope, args);
}

void argmax(ThreadPool& pool, const Rows& x, const MutableIds& index, const std::string& tier) {
    if (static_cast<int64_t>(index.size()) != rows_of(x)) refuse("index: one per row of x");
    if (width_of(x) < 1) refuse("x: rows must not be empty");
    run(pool, table_for(pool, tier).argmax, ArgmaxArgs{x.data(), width_of(x), width_of(x), rows_of(x), index.data()});
}

Function function_of(const std::string& name) {
    if (name == "exp2") return Function::kExp2;
    if (name == "exp") return Function::kExp;
    if (name == "sigmoid") return Function::kSigmoid;
    if (name == "tanh") return Function::kTanh;
    if (name == "silu") return Function::kSilu;
    if (name == "gelu_tanh") return Function::kGeluTanh;
    refuse("function: '" + name + "' is not one of exp2, exp, sigmoid, tanh, silu, gelu_tanh");
}

void apply(ThreadPool& pool, const std::string& function, const Floats& x, const MutableFloats& y, const std::string& tier) {
    if (y.size() != x.size()) refuse("y: not of x's shape");
    const ApplyArgs args = {function_of(function), x.data(), y.data(), static_cast<int64_t>(x.size())};
    run(pool, table_for(pool, tier).apply, args);
}

void dequantize_row(const Bytes& row, int32_t type, const MutableFloats& y, const std::string& tier) {
    const KernelTable& table = tier.empty() ? kernels() : kernels_of(tier);
    const int64_t size = static_cast<int64_t>(y.size());
    const int64_t row_bytes = table.ggml_row_bytes(type, size);
    if (row_bytes < 0) refuse("ggml_type: " + std::to_string(size) + " values of type " + std::to_string(type) + " are not whole blocks of a known type");
    if (static_cast<int64_t>(row.size()) != row_bytes) refuse("row: must have " + std::to_string(row_bytes) + " bytes");
    table.dequantize_row(type, row.data(), y.data(), size);
}

}  // namespace

void bind_elementwise(nb::module_& module) {
    module.def("rms_norm", &rms_norm, nb::arg("pool"), nb::arg("x"), nb::arg("weight"), nb::arg("eps"), nb::arg("y"), nb::arg("tier") = "",
               "y = x / rms(x) * weight over each len(weight) features of [rows, width].");
    module.def("rope", &rope, nb::arg("pool"), nb::arg("x"), nb::arg("cos"), nb::arg("sin"), nb::arg("positions"), nb::arg("head_dim"),
               nb::arg("tier") = "", "Rotates x [rows, heads * head_dim] in place; cos and sin: [positions, rotary_dim / 2].");
    module.def("argmax", &argmax, nb::arg("pool"), nb::arg("x"), nb::arg("index"), nb::arg("tier") = "",
               "index[r] = first position of the largest x[r]; -1 if x[r] has a NaN.");
    module.def("apply", &apply, nb::arg("pool"), nb::arg("function"), nb::arg("x"), nb::arg("y"), nb::arg("tier") = "",
               "y = function(x): exp2, exp, sigmoid, tanh, silu or gelu_tanh.");
    module.def("dequantize_row", &dequantize_row, nb::arg("row"), nb::arg("ggml_type"), nb::arg("y"), nb::arg("tier") = "",
               "A row of ggml blocks as floats.");
}

}  // namespace ridgeline
