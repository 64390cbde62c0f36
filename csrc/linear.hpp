// y = epilogue(x W^T + bias) for packed W and quantised rows of x.
//
//   threads:  each takes a range of panels and computes whole outputs, so the split cannot change a result
//   blocking: for a block of rows that stays in L2, for each panel (streamed once a block), for a few rows at a time
#pragma once

#include <cstdint>

#include "activations.hpp"
#include "linear_args.hpp"
#include "linear_float.hpp"
#include "linear_integer.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"

namespace ridgeline::RL_TIER {

inline constexpr int64_t kRowBlockBytes = 1 << 20;

// The 32 outputs of one panel for one row -> its place in y. Panels at the edge write only what exists.
RL_INLINE void finish_row(const LinearArgs& args, int64_t panel, int64_t row, const float* value) {
    const PackedMatrix& w = *args.weight;
    const float* bias = w.biases != nullptr ? w.biases + panel * kPanelOutputs : nullptr;
    const int64_t width = w.gated ? 16 : 32;
    const int64_t outputs = w.gated ? w.num_outputs / 2 : w.num_outputs;
    const int64_t left = outputs - panel * width < width ? outputs - panel * width : width;
    float* y = args.y + row * args.y_stride + panel * width;
    const float* residual = args.residual + row * args.residual_stride + panel * width;
    for (int64_t i = 0; i < left; i += kLanes) {
        Vec v = load(value + i);
        if (bias != nullptr) v = v + load(bias + i);
        const int64_t count = left - i < kLanes ? left - i : kLanes;
        if (w.gated) {
            Vec up = load(value + 16 + i);
            if (bias != nullptr) up = up + load(bias + 16 + i);
            v = (args.epilogue == Epilogue::kSilu ? silu(v) : gelu_tanh(v)) * up;
        } else if (args.epilogue == Epilogue::kResidual) {
            v = (count == kLanes ? load(residual + i) : load_partial(residual + i, count)) + v;
        } else if (args.epilogue == Epilogue::kSoftcap) {
            v = splat(args.softcap) * tanh(v / splat(args.softcap));
        }
        if (count == kLanes)
            store(y + i, v);
        else
            store_partial(y + i, v, count);
    }
}

static void expand(const PackedMatrix& w, int64_t panel, int64_t inputs, uint8_t* planes) {
    const uint8_t* packed = w.panels + panel * w.panel_bytes;
    if (w.kind == WeightKind::kInt4) return expand_panel<WeightKind::kInt4>(packed, inputs, planes);
    expand_panel<WeightKind::kInt8>(packed, inputs, planes);
}

// Rows [row, row + count) against one panel; `planes` is the panel expanded, of an integer kind.
RL_INLINE void multiply_panel(const LinearArgs& args, int64_t panel, const uint8_t* planes, int64_t row, int64_t count, bool streams) {
    const PackedMatrix& w = *args.weight;
    const int64_t row_bytes = quantized_row_bytes(w.kind, w.num_inputs);
    const int64_t inputs = padded_inputs(w.kind, w.num_inputs);
    const uint8_t* rows = args.rows + row * row_bytes;
    const uint8_t* data = w.panels + panel * w.panel_bytes;
    alignas(64) float out[32 * 32];
    if (w.kind == WeightKind::kFloat32) {
        for (int64_t r = 0; r < count; ++r) multiply_float32<1>(data, rows + r * row_bytes, row_bytes, inputs, out + r * 32);
    } else if (w.kind == WeightKind::kBf16) {
        multiply_bf16(data, rows, row_bytes, inputs, count, streams, out);
    } else if (w.kind == WeightKind::kInt4) {
        multiply_integers<WeightKind::kInt4>(data, planes, rows, row_bytes, inputs, w.scales + panel * kPanelOutputs, count, out);
    } else {
        multiply_integers<WeightKind::kInt8>(data, planes, rows, row_bytes, inputs, w.scales + panel * kPanelOutputs, count, out);
    }
    for (int64_t r = 0; r < count; ++r) finish_row(args, panel, row + r, out + r * 32);
}

static void linear(const LinearArgs& args, Team& team) {
    const PackedMatrix& w = *args.weight;
    const int64_t inputs = padded_inputs(w.kind, w.num_inputs);
    const int64_t step = w.kind == WeightKind::kFloat32 ? 1 : w.kind == WeightKind::kBf16 ? kBf16Rows : kIntegerRows;
    const int64_t fitting = kRowBlockBytes / quantized_row_bytes(w.kind, w.num_inputs) / step * step;
    const int64_t block = fitting > 2 * step ? fitting : 2 * step;
    uint8_t* planes = nullptr;
    if (is_integer(w.kind) && !multiplies_packed(args.num_rows))
        planes = static_cast<uint8_t*>(team.scratch(static_cast<size_t>(2 * inputs * 32)));
    const Range panels = team.share(w.num_panels);
    for (int64_t begin = 0; begin < args.num_rows; begin += block) {
        const int64_t end = begin + block < args.num_rows ? begin + block : args.num_rows;
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            if (planes != nullptr) expand(w, panel, inputs, planes);
            for (int64_t row = begin; row < end; row += step)
                multiply_panel(args, panel, planes, row, end - row < step ? end - row : step, row == begin);
        }
    }
}

}  // namespace ridgeline::RL_TIER
