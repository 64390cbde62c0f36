// Python's view of packed matrices, and of the linear kernels for tests.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "isa.hpp"
#include "matrix.hpp"

namespace nb = nanobind;

namespace ridgeline {

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Order = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<float, nb::numpy, nb::ndim<2>>;

// Keeps every product of sizes far from overflow.
constexpr int64_t kMostRows = int64_t{1} << 26, kMostInputs = int64_t{1} << 24;

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

void check_pool(const KernelTable& kernels, const ThreadPool& pool) {
    if (!pool.enters_with(kernels.enter_region)) refuse(std::string("pool: made for another tier than ") + kernels.name);
}

void check_order(const std::string& name, const Order& order, int64_t num_rows) {
    if (static_cast<int64_t>(order.size()) != num_rows) refuse(name + ": row_order has " + std::to_string(order.size()) + " entries, not " + std::to_string(num_rows));
    for (size_t i = 0; i < order.size(); ++i)
        if (order.data()[i] < 0 || order.data()[i] >= num_rows) refuse(name + ": row_order[" + std::to_string(i) + "] is out of range");
}

// (data, ggml type, rows, row_order or None) -> a part whose sizes are known to agree.
MatrixPart read_part(const KernelTable& kernels, const nb::handle& item, size_t index, int64_t num_inputs) {
    const std::string name = "parts[" + std::to_string(index) + "]";
    nb::tuple fields;
    if (!nb::try_cast(item, fields) || fields.size() != 4) refuse(name + " must be (data, ggml_type, num_rows, row_order)");
    Bytes data;
    if (!nb::try_cast(fields[0], data, false)) refuse(name + ": data must be a contiguous one-dimensional uint8 array");
    const auto type = nb::cast<int32_t>(fields[1]);
    const auto num_rows = nb::cast<int64_t>(fields[2]);
    const int64_t row_bytes = kernels.ggml_row_bytes(type, num_inputs);
    if (row_bytes < 0) refuse(name + ": " + std::to_string(num_inputs) + " inputs of ggml type " + std::to_string(type) + " are not whole blocks of a known type");
    if (num_rows < 1 || num_rows > kMostRows) refuse(name + ": num_rows " + std::to_string(num_rows) + " is out of range");
    if (static_cast<int64_t>(data.size()) != num_rows * row_bytes)
        refuse(name + ": data has " + std::to_string(data.size()) + " bytes, not " + std::to_string(num_rows * row_bytes));
    const int64_t* order = nullptr;
    if (!fields[3].is_none()) {
        Order array;
        if (!nb::try_cast(fields[3], array, false)) refuse(name + ": row_order must be a contiguous int64 array or None");
        check_order(name, array, num_rows);
        order = array.data();
    }
    return {data.data(), type, num_rows, row_bytes, order};
}

void make_matrix(Matrix* self, ThreadPool& pool, nb::list items, int64_t num_inputs, const std::string& kind_name, bool gated,
                 nb::object bias, const std::string& tier) {
    const KernelTable& table = tier.empty() ? kernels() : kernels_of(tier);
    check_pool(table, pool);
    const WeightKind kind = weight_kind(kind_name);
    if (num_inputs < 1 || num_inputs > kMostInputs) refuse("num_inputs: " + std::to_string(num_inputs) + " is out of range");
    if (is_integer(kind) && num_inputs > kMostIntegerInputs)
        refuse("num_inputs: " + std::to_string(num_inputs) + " is over the " + std::to_string(kMostIntegerInputs) + " of an integer kind");
    if (items.size() == 0) refuse("parts: at least one matrix is needed");
    std::vector<MatrixPart> parts;
    int64_t num_outputs = 0;
    for (size_t i = 0; i < items.size(); ++i) {
        parts.push_back(read_part(table, items[i], i, num_inputs));
        num_outputs += parts.back().num_rows;
    }
    if (num_outputs > kMostRows) refuse("parts: more than " + std::to_string(kMostRows) + " rows");
    if (gated && num_outputs % 2 != 0) refuse("gated: " + std::to_string(num_outputs) + " rows are not two halves");
    const float* biases = nullptr;
    Floats array;
    if (!bias.is_none()) {
        if (!nb::try_cast(bias, array, false)) refuse("bias must be a contiguous one-dimensional float32 array or None");
        if (static_cast<int64_t>(array.size()) != num_outputs) refuse("bias: " + std::to_string(array.size()) + " values for " + std::to_string(num_outputs) + " rows");
        biases = array.data();
    }
    const nb::gil_scoped_release release;
    new (self) Matrix(table, pool, parts, num_inputs, kind, gated, biases);
}

Epilogue epilogue_of(const std::string& name) {
    if (name == "store") return Epilogue::kStore;
    if (name == "silu") return Epilogue::kSilu;
    if (name == "gelu_tanh") return Epilogue::kGelu;
    if (name == "softcap") return Epilogue::kSoftcap;
    refuse("epilogue: '" + name + "' is not one of store, silu, gelu_tanh, softcap");
}

Result owned_rows(Buffer&& buffer, int64_t rows, int64_t columns) {
    Buffer* owner = new Buffer(std::move(buffer));
    nb::capsule capsule(owner, [](void* p) noexcept { delete static_cast<Buffer*>(p); });
    return Result(owner->as<float>(), {static_cast<size_t>(rows), static_cast<size_t>(columns)}, capsule);
}

Result multiply(const Matrix& self, ThreadPool& pool, const Rows& x, nb::object residual, const std::string& epilogue_name,
                float softcap, nb::object norm_weight, float eps) {
    check_pool(self.kernels(), pool);
    const PackedMatrix& w = self.packed();
    const int64_t num_rows = static_cast<int64_t>(x.shape(0));
    if (static_cast<int64_t>(x.shape(1)) != w.num_inputs) refuse("x: rows of " + std::to_string(x.shape(1)) + " features, not " + std::to_string(w.num_inputs));
    Epilogue epilogue = epilogue_of(epilogue_name);
    if (w.gated != (epilogue == Epilogue::kSilu || epilogue == Epilogue::kGelu)) refuse("epilogue: silu and gelu_tanh go with gated matrices, and only they");
    const int64_t width = w.gated ? w.num_outputs / 2 : w.num_outputs;
    Rows addend;
    if (!residual.is_none()) {
        if (!nb::try_cast(residual, addend, false)) refuse("residual must be a contiguous two-dimensional float32 array or None");
        if (epilogue != Epilogue::kStore) refuse("residual: not together with another epilogue");
        if (static_cast<int64_t>(addend.shape(0)) != num_rows || static_cast<int64_t>(addend.shape(1)) != width) refuse("residual: not of the result's shape");
        epilogue = Epilogue::kResidual;
    }
    Floats norm;
    if (!norm_weight.is_none()) {
        if (!nb::try_cast(norm_weight, norm, false)) refuse("norm_weight must be a contiguous float32 array or None");
        if (static_cast<int64_t>(norm.size()) != w.num_inputs) refuse("norm_weight: " + std::to_string(norm.size()) + " values, not " + std::to_string(w.num_inputs));
    }
    Buffer rows(static_cast<size_t>((num_rows + kRowSlack) * quantized_row_bytes(w.kind, w.num_inputs)));
    Buffer y(static_cast<size_t>(num_rows * width) * sizeof(float));
    const QuantizeArgs quantize = {w.kind, x.data(), w.num_inputs, w.num_inputs, num_rows, norm_weight.is_none() ? nullptr : norm.data(), eps, rows.data()};
    const LinearArgs product = {&w, rows.data(), num_rows, y.as<float>(), width, epilogue, residual.is_none() ? nullptr : addend.data(), width, softcap};
    {
        const nb::gil_scoped_release release;
        pool.parallel([&](Team& team) {
            self.kernels().quantize_rows(quantize, team);
            team.barrier();
            self.kernels().linear(product, team);
        });
    }
    return owned_rows(std::move(y), num_rows, width);
}

Result embed_rows(const Matrix& self, ThreadPool& pool, const Ids& ids, float scale) {
    check_pool(self.kernels(), pool);
    const PackedMatrix& w = self.packed();
    if (w.gated) refuse("table: a gated matrix cannot be read by rows");
    for (size_t i = 0; i < ids.size(); ++i)
        if (ids.data()[i] < 0 || ids.data()[i] >= w.num_outputs) refuse("ids[" + std::to_string(i) + "]: " + std::to_string(ids.data()[i]) + " is not a row of the table");
    Buffer y(ids.size() * static_cast<size_t>(w.num_inputs) * sizeof(float));
    const EmbedArgs args = {&w, ids.data(), static_cast<int64_t>(ids.size()), scale, y.as<float>(), w.num_inputs};
    {
        const nb::gil_scoped_release release;
        pool.parallel([&](Team& team) { self.kernels().embed(args, team); });
    }
    return owned_rows(std::move(y), args.num_rows, w.num_inputs);
}

}  // namespace

void bind_linear(nb::module_& module) {
    nb::class_<Matrix>(module, "Matrix", "Stacked weight matrices, packed for the products of one tier.")
        .def("__init__", &make_matrix, nb::arg("pool"), nb::arg("parts"), nb::arg("num_inputs"), nb::arg("kind"),
             nb::arg("gated") = false, nb::arg("bias") = nb::none(), nb::arg("tier") = "",
             "parts: [(data uint8[], ggml_type, num_rows, row_order int64[] or None)]. Raises ValueError naming what does not fit.")
        .def_prop_ro("num_outputs", [](const Matrix& m) { return m.packed().num_outputs; })
        .def_prop_ro("num_inputs", [](const Matrix& m) { return m.packed().num_inputs; })
        .def_prop_ro("gated", [](const Matrix& m) { return m.packed().gated; })
        .def_prop_ro("num_bytes", &Matrix::num_bytes)
        .def_prop_ro("row_bytes", [](const Matrix& m) { return quantized_row_bytes(m.packed().kind, m.packed().num_inputs); },
                     "Bytes of one quantised row of its input.")
        .def("multiply", &multiply, nb::arg("pool"), nb::arg("x"), nb::arg("residual") = nb::none(), nb::arg("epilogue") = "store",
             nb::arg("softcap") = 0.0f, nb::arg("norm_weight") = nb::none(), nb::arg("eps") = 0.0f,
             "epilogue(norm(x) @ W.T + bias), [rows, outputs] float32.")
        .def("embed", &embed_rows, nb::arg("pool"), nb::arg("ids"), nb::arg("scale") = 1.0f, "Rows of the table as float32.");
}

}  // namespace ridgeline
