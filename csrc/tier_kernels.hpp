// Included by each tier_*.cpp: the kernel headers, compiled for RL_TIER, and the table of what they define.
#include "kernel_table.hpp"
#include "simd.hpp"

#include "activations.hpp"
#include "argmax.hpp"
#include "attention.hpp"
#include "elementwise.hpp"
#include "embed.hpp"
#include "ggml_blocks.hpp"
#include "kv_write.hpp"
#include "linear.hpp"
#include "measure.hpp"
#include "norm.hpp"
#include "pack.hpp"
#include "quantize_rows.hpp"
#include "region.hpp"
#include "rope.hpp"
#include "sample.hpp"

namespace ridgeline::RL_TIER {

extern const KernelTable kTable;  // external linkage for isa.cpp

const KernelTable kTable = {
    .name = RL_STRINGIFY(RL_TIER),
    .enter_region = enter_region,
    .leave_region = leave_region,
    .ggml_row_bytes = ggml_row_bytes,
    .pack = pack,
    .embed = embed,
    .quantize_rows = quantize_rows,
    .linear = linear,
    .add = add,
    .rms_norm = rms_norm,
    .rope = rope,
    .kv_write = kv_write,
    .attention = attention,
    .argmax = argmax,
    .sample = sample,
    .measure_logprobs = measure_logprobs,
    .apply = apply,
    .dequantize_row = [](int32_t type, const uint8_t* row, float* y, int64_t num_values) {
        dequantize_row(static_cast<GgmlType>(type), row, y, num_values);
    },
    .measure_read = measure_read,
    .measure_peak = measure_peak,
    .peak_operations = peak_operations,
};

}  // namespace ridgeline::RL_TIER
