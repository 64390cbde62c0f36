#include "tape.hpp"

#include <chrono>
#include <cstring>

namespace ridgeline {

namespace {

int64_t rows_of(const StepInputs& in, bool on_logit_rows) { return on_logit_rows ? in.num_logit_rows : in.num_tokens; }

int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Tape::Tape(const KernelTable& kernels, ThreadPool& pool, int64_t arena_bytes, int64_t workspace_floats)
    : kernels_(kernels), pool_(pool), arena_(static_cast<size_t>(arena_bytes)),
      workspace_(static_cast<size_t>(workspace_floats) * sizeof(float)) {}

void Tape::append(const char* name, Op op) {
    ops_.push_back(std::move(op));
    names_.push_back(name);
    nanoseconds_.push_back(0);
}

void Tape::measure(bool on) {
    measures_ = on;
    nanoseconds_.assign(ops_.size(), 0);
}

void Tape::embed(const Matrix& table, float scale, Place y) {
    append("embed", [this, &table, scale, y](const StepInputs& in, Team& team) {
        kernels_.embed({&table.packed(), in.token_ids, in.num_tokens, scale, at(y), y.stride}, team);
    });
}

void Tape::rms_norm(Place x, Place y, const Constant& weight, int64_t num_groups, float eps, bool on_logit_rows) {
    append("rms_norm", [=, this, &weight](const StepInputs& in, Team& team) {
        kernels_.rms_norm({at(x), x.stride, at(y), y.stride, weight.values.as<float>(), weight.num_values, num_groups,
                           rows_of(in, on_logit_rows), eps}, team);
    });
}

void Tape::add(Place x, Place z, Place y, int64_t width, bool on_logit_rows) {
    append("add", [=, this](const StepInputs& in, Team& team) {
        kernels_.add({at(x), x.stride, at(z), z.stride, at(y), y.stride, width, rows_of(in, on_logit_rows)}, team);
    });
}

void Tape::rope(Place x, int64_t num_heads, int64_t head_dim, int64_t rotary_dim, const Constant& cos, const Constant& sin) {
    append("rope", [=, this, &cos, &sin](const StepInputs& in, Team& team) {
        kernels_.rope({at(x), x.stride, num_heads, head_dim, rotary_dim, cos.values.as<float>(), sin.values.as<float>(),
                       in.positions, in.num_tokens}, team);
    });
}

void Tape::attention(Place q, Place k, Place v, Place y, const KvPool& cache, const AttentionShape& shape) {
    const auto requests = [shape](const StepInputs& in) {
        const size_t group = static_cast<size_t>(shape.group);
        return StepRows{in.row_starts, in.context_before, in.block_tables[group], in.num_requests, in.table_widths[group]};
    };
    append("kv_write", [=, this, &cache](const StepInputs& in, Team& team) {
        kernels_.kv_write({cache.layer(shape.slot), requests(in), at(k), k.stride, at(v), v.stride}, team);
    });
    append("attention", [=, this, &cache](const StepInputs& in, Team& team) {
        kernels_.attention({cache.layer(shape.slot), requests(in), at(q), q.stride, at(y), y.stride, shape.num_heads, shape.scale,
                            shape.window, shape.softcap, workspace_.as<float>(),
                            static_cast<int64_t>(workspace_.num_bytes() / sizeof(float))}, team);
    });
}

void Tape::select(Place x, Place y, int64_t width) {
    append("select", [=, this](const StepInputs& in, Team& team) {
        const Range rows = team.share(in.num_logit_rows);
        for (int64_t row = rows.begin; row < rows.end; ++row)
            std::memcpy(at(y) + row * y.stride, at(x) + in.logit_rows[row] * x.stride, static_cast<size_t>(width) * sizeof(float));
    });
}

void Tape::quantize(Place x, Place rows, const Matrix& consumer, const Constant* norm_weight, float eps, bool on_logit_rows) {
    const PackedMatrix& w = consumer.packed();
    append("quantize", [=, this, &w](const StepInputs& in, Team& team) {
        kernels_.quantize_rows({w.kind, at(x), x.stride, w.num_inputs, rows_of(in, on_logit_rows),
                                norm_weight != nullptr ? norm_weight->values.as<float>() : nullptr, eps, arena_.data() + rows.offset}, team);
    });
}

void Tape::linear(Place rows, const Matrix& weight, Place y, Epilogue epilogue, const Place* residual, bool on_logit_rows) {
    const Place addend = residual != nullptr ? *residual : Place{0, 0};
    append("linear", [=, this, &weight](const StepInputs& in, Team& team) {
        kernels_.linear({&weight.packed(), arena_.data() + rows.offset, rows_of(in, on_logit_rows), at(y), y.stride, epilogue,
                         epilogue == Epilogue::kResidual ? at(addend) : nullptr, addend.stride, 0.0f}, team);
    });
}

void Tape::logits(Place rows, const Matrix& head, float softcap) {
    append("logits", [=, this, &head](const StepInputs& in, Team& team) {
        const PackedMatrix& w = head.packed();
        kernels_.linear({&w, arena_.data() + rows.offset, in.num_logit_rows, in.logits, w.num_outputs,
                         softcap > 0 ? Epilogue::kSoftcap : Epilogue::kStore, nullptr, 0, softcap}, team);
    });
}

void Tape::step(const StepInputs& inputs) {
    pool_.parallel([&](Team& team) {
        const bool measures = measures_ && team.thread == 0;
        int64_t begin = measures ? now_ns() : 0;
        for (size_t i = 0; i < ops_.size(); ++i) {
            ops_[i](inputs, team);
            team.barrier();
            if (measures) {
                const int64_t end = now_ns();
                nanoseconds_[i] += end - begin;
                begin = end;
            }
        }
    });
}

}  // namespace ridgeline
