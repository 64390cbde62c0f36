// A packed weight matrix that owns its memory, and the row formats of the products it takes part in.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernel_table.hpp"
#include "linear_args.hpp"
#include "memory.hpp"

namespace ridgeline {

// Throws std::invalid_argument for a name that is not int8, int4, bf16 or float32.
WeightKind weight_kind(const std::string& name);

class Matrix {
public:
    // Packs the stacked parts with the pool's threads. `biases`: one float per stacked row, or null. The parts must be
    // valid for the kind (checked by the binding) and may go away afterwards.
    Matrix(const KernelTable& kernels, ThreadPool& pool, const std::vector<MatrixPart>& parts, int64_t num_inputs,
           WeightKind kind, bool gated, const float* biases);

    const PackedMatrix& packed() const { return packed_; }
    const KernelTable& kernels() const { return *kernels_; }
    int64_t num_bytes() const { return static_cast<int64_t>(panels_.num_bytes() + scales_.num_bytes() + biases_.num_bytes()); }

private:
    const KernelTable* kernels_;
    Buffer panels_, scales_, biases_;
    PackedMatrix packed_;
};

}  // namespace ridgeline
