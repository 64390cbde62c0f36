// One function pointer per kernel. Each tier fills one table; `isa.hpp` chooses among them at load.
#pragma once

#include <cstdint>

#include "attention_args.hpp"
#include "function_args.hpp"
#include "kernel_args.hpp"
#include "linear_args.hpp"
#include "measure_args.hpp"
#include "sample_args.hpp"
#include "thread_pool.hpp"

namespace ridgeline {

struct KernelTable {
    const char* name;

    // Called by every thread at the start and the end of a region (the AMX tile configuration); may be null.
    void (*enter_region)();
    void (*leave_region)();

    // Bytes of a file's row of `num_values` values of a ggml type; -1: not a type, or not whole blocks.
    int64_t (*ggml_row_bytes)(int32_t type, int64_t num_values);
    void (*pack)(const PackArgs&, Team&);
    void (*embed)(const EmbedArgs&, Team&);
    void (*quantize_rows)(const QuantizeArgs&, Team&);
    void (*linear)(const LinearArgs&, Team&);
    void (*add)(const AddArgs&, Team&);
    void (*rms_norm)(const RmsNormArgs&, Team&);
    void (*rope)(const RopeArgs&, Team&);
    void (*kv_write)(const KvWriteArgs&, Team&);
    void (*attention)(const AttentionArgs&, Team&);
    void (*argmax)(const ArgmaxArgs&, Team&);
    void (*sample)(const SampleArgs&, Team&);
    void (*measure_logprobs)(const LogprobArgs&, Team&);
    void (*apply)(const ApplyArgs&, Team&);
    // One row of a ggml type (whole blocks) as floats.
    void (*dequantize_row)(int32_t type, const uint8_t* row, float* y, int64_t num_values);
    // The machine's ceilings. Operations of one round of a unit on one thread; 0: the tier has none.
    void (*measure_read)(const ReadArgs&, Team&);
    void (*measure_peak)(const PeakArgs&, Team&);
    int64_t (*peak_operations)(Unit unit);
};

}  // namespace ridgeline
