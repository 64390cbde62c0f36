// Python's view of the tape. Every op is checked against the arena when it is recorded, every step's arrays when it is run.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>

#include "isa.hpp"
#include "tape.hpp"

namespace nb = nanobind;

namespace ridgeline {

namespace {

using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tables = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using PlacePair = std::pair<int64_t, int64_t>;  // (offset in bytes, stride)

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

void require(bool holds, const char* message) {
    if (!holds) refuse(message);
}

// A tape with what its checks need: the shapes that ops were recorded with.
class CheckedTape {
public:
    CheckedTape(ThreadPool& pool, int64_t arena_bytes, int64_t max_tokens, int64_t max_logit_rows, int64_t workspace_floats,
                const std::string& tier)
        : kernels_(tier.empty() ? kernels() : kernels_of(tier)), arena_bytes_(arena_bytes), max_tokens_(max_tokens), max_logit_rows_(max_logit_rows) {
        if (!pool.enters_with(kernels_.enter_region)) refuse(std::string("pool: made for another tier than ") + kernels_.name);
        require(arena_bytes >= 64 && arena_bytes <= (int64_t{1} << 46), "arena_bytes: out of range");
        require(max_tokens >= 1 && max_tokens <= (int64_t{1} << 22), "max_tokens: out of range");
        require(max_logit_rows >= 1 && max_logit_rows <= max_tokens, "max_logit_rows: must be within 1..max_tokens");
        require(workspace_floats >= 0 && workspace_floats <= (int64_t{1} << 32), "workspace_floats: out of range");
        tape_ = std::make_unique<Tape>(kernels_, pool, arena_bytes, workspace_floats);
    }

    Tape& tape() { return *tape_; }

    void embed(const Matrix& table, float scale, PlacePair y) {
        check_matrix(table);
        const PackedMatrix& w = table.packed();
        require(!w.gated, "table: a gated matrix cannot be read by rows");
        vocab_ = vocab_ == 0 ? w.num_outputs : std::min(vocab_, w.num_outputs);
        tape_->embed(table, scale, floats("y", y, w.num_inputs));
    }

    void rms_norm(PlacePair x, PlacePair y, const Constant& weight, int64_t num_groups, float eps, bool on_logit_rows) {
        require(num_groups >= 1 && num_groups <= (1 << 20), "num_groups: out of range");
        const int64_t width = weight.num_values * num_groups;
        tape_->rms_norm(floats("x", x, width), floats("y", y, width), weight, num_groups, eps, on_logit_rows);
    }

    void add(PlacePair x, PlacePair z, PlacePair y, int64_t width, bool on_logit_rows) {
        tape_->add(floats("x", x, width), floats("z", z, width), floats("y", y, width), width, on_logit_rows);
    }

    void rope(PlacePair x, int64_t num_heads, int64_t head_dim, int64_t rotary_dim, const Constant& cos, const Constant& sin) {
        require(num_heads >= 1 && num_heads <= 65536 && head_dim >= 2 && head_dim <= 65536, "num_heads, head_dim: out of range");
        require(rotary_dim >= 2 && rotary_dim <= head_dim && rotary_dim % 2 == 0, "rotary_dim: must be even and within head_dim");
        require(cos.num_values == sin.num_values && cos.num_values % (rotary_dim / 2) == 0, "cos, sin: not [positions, rotary_dim / 2]");
        const int64_t positions = cos.num_values / (rotary_dim / 2);
        max_positions_ = max_positions_ == 0 ? positions : std::min(max_positions_, positions);
        tape_->rope(floats("x", x, num_heads * head_dim), num_heads, head_dim, rotary_dim, cos, sin);
    }

    void attention(PlacePair q, PlacePair k, PlacePair v, PlacePair y, const KvPool& cache, int64_t group, int64_t slot,
                   int64_t num_heads, float scale, int64_t window, float softcap) {
        require(group >= 0 && group < 4096, "group: out of range");
        require(slot >= 0 && slot < cache.layers_per_page, "slot: beyond the page");
        require(num_heads >= 1 && num_heads <= 4096 && num_heads % cache.num_kv_heads == 0, "num_heads: not a multiple of the cache's heads");
        require(window >= 0 && softcap >= 0, "window, softcap: must not be negative");
        const int64_t width = num_heads * cache.head_dim, kv_width = cache.num_kv_heads * cache.head_dim;
        if (static_cast<size_t>(group) >= windows_.size()) windows_.resize(static_cast<size_t>(group) + 1, -1);
        int64_t& widest = windows_[static_cast<size_t>(group)];  // 0: some layer sees everything
        widest = widest < 0 ? window : widest == 0 || window == 0 ? 0 : std::max(widest, window);
        require(cache_ == nullptr || cache_ == &cache, "cache: not that of the other layers");
        cache_ = &cache;
        tape_->attention(floats("q", q, width), floats("k", k, kv_width), floats("v", v, kv_width), floats("y", y, width), cache,
                         {group, slot, num_heads, scale, window, softcap});
    }

    void select(PlacePair x, PlacePair y, int64_t width) { tape_->select(floats("x", x, width), floats("y", y, width), width); }

    void quantize(PlacePair x, int64_t rows, const Matrix& consumer, nb::object norm, float eps, bool on_logit_rows) {
        check_matrix(consumer);
        const Constant* weight = norm.is_none() ? nullptr : nb::cast<const Constant*>(norm);
        const PackedMatrix& w = consumer.packed();
        require(weight == nullptr || weight->num_values == w.num_inputs, "norm: not of the matrix's inputs");
        tape_->quantize(floats("x", x, w.num_inputs), quantized(rows, w), consumer, weight, eps, on_logit_rows);
    }

    void linear(int64_t rows, const Matrix& weight, PlacePair y, const std::string& epilogue_name, nb::object residual, bool on_logit_rows) {
        check_matrix(weight);
        const PackedMatrix& w = weight.packed();
        const Epilogue epilogue = epilogue_of(epilogue_name);
        const bool activates = epilogue == Epilogue::kSilu || epilogue == Epilogue::kGelu;
        require(w.gated == activates, "epilogue: silu and gelu_tanh go with gated matrices, and only they");
        require(residual.is_none() == (epilogue != Epilogue::kResidual), "residual: goes with the epilogue 'residual'");
        const int64_t width = w.gated ? w.num_outputs / 2 : w.num_outputs;
        Place addend = {0, 0};
        if (!residual.is_none()) addend = floats("residual", nb::cast<PlacePair>(residual), width);
        tape_->linear(quantized(rows, w), weight, floats("y", y, width), epilogue, residual.is_none() ? nullptr : &addend, on_logit_rows);
    }

    void logits(int64_t rows, const Matrix& head, float softcap) {
        check_matrix(head);
        require(!head.packed().gated, "head: must not be gated");
        require(logit_width_ == 0, "head: there is one already");
        logit_width_ = head.packed().num_outputs;
        tape_->logits(quantized(rows, head.packed()), head, softcap);
    }

    void step(const Ints& token_ids, const Ints& positions, const Ints& row_starts, const Ints& context_before,
              const std::vector<Tables>& block_tables, const Ints& logit_rows, const Logits& logits) {
        StepInputs in = {};
        in.num_tokens = static_cast<int64_t>(token_ids.size());
        in.num_logit_rows = static_cast<int64_t>(logit_rows.size());
        in.num_requests = static_cast<int64_t>(context_before.size());
        in.token_ids = token_ids.data();
        in.positions = positions.data();
        in.row_starts = row_starts.data();
        in.context_before = context_before.data();
        in.logit_rows = logit_rows.data();
        in.logits = logits.data();
        check_tokens(in, positions.size());
        check_rows(in, row_starts.size());
        check_logit_rows(in, logits);
        require(block_tables.size() >= windows_.size(), "block_tables: one for each KV group");
        for (size_t group = 0; group < block_tables.size(); ++group) {
            in.block_tables.push_back(block_tables[group].data());
            in.table_widths.push_back(static_cast<int64_t>(block_tables[group].shape(1)));
            if (group < windows_.size() && windows_[group] >= 0) check_blocks(in, group, block_tables[group]);
        }
        const nb::gil_scoped_release release;
        tape_->step(in);
    }

private:
    Place floats(const char* name, PlacePair place, int64_t width) const {
        const auto [offset, stride] = place;
        const bool fits = width >= 1 && stride >= width && stride <= (int64_t{1} << 32) && offset >= 0 && offset % 4 == 0 &&
                          offset <= arena_bytes_ && ((max_tokens_ - 1) * stride + width) * 4 <= arena_bytes_ - offset;
        if (!fits) refuse(std::string(name) + ": does not lie in the arena");
        return {offset, stride};
    }

    Place quantized(int64_t offset, const PackedMatrix& w) const {
        const int64_t row_bytes = quantized_row_bytes(w.kind, w.num_inputs);
        const bool fits = offset >= 0 && offset % 64 == 0 && offset <= arena_bytes_ && (max_tokens_ + kRowSlack) * row_bytes <= arena_bytes_ - offset;
        require(fits, "rows: do not lie in the arena");
        return {offset, row_bytes};
    }

    void check_matrix(const Matrix& matrix) const {
        if (&matrix.kernels() != &kernels_) refuse(std::string("matrix: packed for another tier than ") + kernels_.name);
    }

    static Epilogue epilogue_of(const std::string& name) {
        if (name == "store") return Epilogue::kStore;
        if (name == "residual") return Epilogue::kResidual;
        if (name == "silu") return Epilogue::kSilu;
        if (name == "gelu_tanh") return Epilogue::kGelu;
        refuse("epilogue: '" + name + "' is not one of store, residual, silu, gelu_tanh");
    }

    void check_tokens(const StepInputs& in, size_t num_positions) const {
        require(in.num_tokens <= max_tokens_, "token_ids: more than max_tokens");
        require(static_cast<int64_t>(num_positions) == in.num_tokens, "positions: not one for each token");
        for (int64_t i = 0; i < in.num_tokens; ++i)
            if (in.token_ids[i] < 0 || (vocab_ > 0 && in.token_ids[i] >= vocab_))
                refuse("token_ids[" + std::to_string(i) + "]: " + std::to_string(in.token_ids[i]) + " is not in the vocabulary");
    }

    void check_rows(const StepInputs& in, size_t num_starts) const {
        require(static_cast<int64_t>(num_starts) == in.num_requests + 1, "row_starts: one more than context_before");
        require(in.row_starts[0] == 0 && in.row_starts[in.num_requests] == in.num_tokens, "row_starts: must go from 0 to the number of tokens");
        for (int64_t r = 0; r < in.num_requests; ++r) {
            require(in.row_starts[r] <= in.row_starts[r + 1], "row_starts: must ascend");
            require(in.context_before[r] >= 0, "context_before: must not be negative");
            for (int64_t i = in.row_starts[r]; i < in.row_starts[r + 1]; ++i) {
                const int64_t position = int64_t{in.context_before[r]} + i - in.row_starts[r];
                if (in.positions[i] != position) refuse("positions[" + std::to_string(i) + "]: must follow the row's context");
                if (max_positions_ > 0 && position >= max_positions_) refuse("positions[" + std::to_string(i) + "]: beyond the model's context");
            }
        }
    }

    void check_logit_rows(const StepInputs& in, const Logits& logits) const {
        require(in.num_logit_rows <= max_logit_rows_, "logit_rows: more than max_logit_rows");
        for (int64_t i = 0; i < in.num_logit_rows; ++i)
            require(in.logit_rows[i] >= 0 && in.logit_rows[i] < in.num_tokens, "logit_rows: not a token of the step");
        require(static_cast<int64_t>(logits.shape(0)) == in.num_logit_rows && static_cast<int64_t>(logits.shape(1)) == logit_width_,
                "logits: must be [logit_rows, vocab]");
    }

    // Every block that a token of the step writes or sees is one of the pool's.
    void check_blocks(const StepInputs& in, size_t group, const Tables& tables) const {
        const int64_t width = in.table_widths[group], window = windows_[group], size = cache_->block_size;
        require(static_cast<int64_t>(tables.shape(0)) == in.num_requests, "block_tables: one row for each request");
        for (int64_t r = 0; r < in.num_requests; ++r) {
            const int64_t before = in.context_before[r], end = before + in.row_starts[r + 1] - in.row_starts[r];
            require(end <= width * size, "block_tables: too narrow");
            const int64_t first = window > 0 && before >= window ? before - window + 1 : 0;
            for (int64_t i = first / size; i * size < end; ++i) {
                const int32_t block = tables.data()[r * width + i];
                if (block < 0 || block >= cache_->num_blocks)
                    refuse("block_tables[" + std::to_string(group) + "]: block " + std::to_string(block) + " is not in the pool");
            }
        }
    }

    const KernelTable& kernels_;
    int64_t arena_bytes_, max_tokens_, max_logit_rows_;
    int64_t vocab_ = 0, max_positions_ = 0, logit_width_ = 0;
    std::vector<int64_t> windows_;
    const KvPool* cache_ = nullptr;
    std::unique_ptr<Tape> tape_;
};

void make_constant(Constant* self, const Floats& values) {
    Buffer buffer(values.size() * sizeof(float) + 64);
    std::copy_n(values.data(), values.size(), buffer.as<float>());
    new (self) Constant{std::move(buffer), static_cast<int64_t>(values.size())};
}

void make_pool(KvPool* self, int64_t num_blocks, int64_t layers_per_page, int64_t num_kv_heads, int64_t head_dim, int64_t block_size,
               bool int8) {
    require(num_blocks >= 1 && num_blocks <= (1 << 28), "num_blocks: out of range");
    require(layers_per_page >= 1 && layers_per_page <= 4096, "layers_per_page: out of range");
    require(num_kv_heads >= 1 && num_kv_heads <= 1024, "num_kv_heads: out of range");
    require(head_dim >= 16 && head_dim <= kMaxHeadDim && head_dim % 16 == 0, "head_dim: must be a multiple of 16 up to 1024");
    require(block_size >= 16 && block_size <= 1024 && block_size % 16 == 0, "block_size: must be a multiple of 16 up to 1024");
    KvPool pool = {Buffer(), num_blocks, layers_per_page, num_kv_heads, head_dim, block_size, int8};
    require(pool.page_bytes() <= (int64_t{1} << 50) / num_blocks, "num_blocks: the pool would exceed 2^50 bytes");
    pool.pages = Buffer(static_cast<size_t>(num_blocks * pool.page_bytes()));
    new (self) KvPool(std::move(pool));
}

}  // namespace

void bind_tape(nb::module_& module) {
    nb::class_<Constant>(module, "Constant", "Float32 values kept by the module.").def("__init__", &make_constant, nb::arg("values"));

    nb::class_<KvPool>(module, "KvPool", "The pages of the KV cache, bf16 or int8 with scales, zeroed.")
        .def("__init__", &make_pool, nb::arg("num_blocks"), nb::arg("layers_per_page"), nb::arg("num_kv_heads"), nb::arg("head_dim"),
             nb::arg("block_size"), nb::arg("int8") = false)
        .def_prop_ro("num_bytes", [](const KvPool& pool) { return pool.num_blocks * pool.page_bytes(); });

    using T = CheckedTape;
    nb::class_<T>(module, "Tape", "A step's ops over an arena. A place is (offset in bytes, stride in floats).")
        .def(nb::init<ThreadPool&, int64_t, int64_t, int64_t, int64_t, const std::string&>(), nb::arg("pool"), nb::arg("arena_bytes"),
             nb::arg("max_tokens"), nb::arg("max_logit_rows"), nb::arg("workspace_floats") = 0, nb::arg("tier") = "", nb::keep_alive<1, 2>())
        .def("embed", &T::embed, nb::arg("table"), nb::arg("scale"), nb::arg("y"), nb::keep_alive<1, 2>())
        .def("rms_norm", &T::rms_norm, nb::arg("x"), nb::arg("y"), nb::arg("weight"), nb::arg("num_groups"), nb::arg("eps"),
             nb::arg("on_logit_rows") = false, nb::keep_alive<1, 4>())
        .def("add", &T::add, nb::arg("x"), nb::arg("z"), nb::arg("y"), nb::arg("width"), nb::arg("on_logit_rows") = false)
        .def("rope", &T::rope, nb::arg("x"), nb::arg("num_heads"), nb::arg("head_dim"), nb::arg("rotary_dim"), nb::arg("cos"), nb::arg("sin"),
             nb::keep_alive<1, 6>(), nb::keep_alive<1, 7>())
        .def("attention", &T::attention, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("y"), nb::arg("cache"), nb::arg("group"),
             nb::arg("slot"), nb::arg("num_heads"), nb::arg("scale"), nb::arg("window") = 0, nb::arg("softcap") = 0.0f, nb::keep_alive<1, 6>())
        .def("select", &T::select, nb::arg("x"), nb::arg("y"), nb::arg("width"))
        .def("quantize", &T::quantize, nb::arg("x"), nb::arg("rows"), nb::arg("consumer"), nb::arg("norm") = nb::none(),
             nb::arg("eps") = 0.0f, nb::arg("on_logit_rows") = false, nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>())
        .def("linear", &T::linear, nb::arg("rows"), nb::arg("weight"), nb::arg("y"), nb::arg("epilogue") = "store",
             nb::arg("residual") = nb::none(), nb::arg("on_logit_rows") = false, nb::keep_alive<1, 3>())
        .def("logits", &T::logits, nb::arg("rows"), nb::arg("head"), nb::arg("softcap") = 0.0f, nb::keep_alive<1, 3>())
        .def("step", &T::step, nb::arg("token_ids").noconvert(), nb::arg("positions").noconvert(), nb::arg("row_starts").noconvert(),
             nb::arg("context_before").noconvert(), nb::arg("block_tables").noconvert(), nb::arg("logit_rows").noconvert(),
             nb::arg("logits").noconvert(), "Runs the ops once; fills `logits`. Raises ValueError naming an array that does not fit.")
        .def("measure", [](T& self, bool on) { self.tape().measure(on); }, nb::arg("on"))
        .def_prop_ro("num_ops", [](T& self) { return self.tape().num_ops(); })
        .def_prop_ro("arena_bytes", [](T& self) { return self.tape().arena_bytes(); })
        .def("nanoseconds", [](T& self) {
            std::vector<std::pair<std::string, int64_t>> spent;
            for (size_t i = 0; i < self.tape().num_ops(); ++i) spent.emplace_back(self.tape().names()[i], self.tape().nanoseconds()[i]);
            return spent;
        }, "(op, nanoseconds since `measure(True)`) of each op in order.");
}

}  // namespace ridgeline
