#include "matrix.hpp"

#include <stdexcept>

namespace ridgeline {

namespace {

// Products prefetch ahead of the panel that they read.
constexpr size_t kPanelSlack = 32768;

}  // namespace

WeightKind weight_kind(const std::string& name) {
    if (name == "int8") return WeightKind::kInt8;
    if (name == "int4") return WeightKind::kInt4;
    if (name == "bf16") return WeightKind::kBf16;
    if (name == "float32") return WeightKind::kFloat32;
    throw std::invalid_argument("kind: '" + name + "' is not one of int8, int4, bf16, float32");
}

Matrix::Matrix(const KernelTable& kernels, ThreadPool& pool, const std::vector<MatrixPart>& parts, int64_t num_inputs,
               WeightKind kind, bool gated, const float* biases)
    : kernels_(&kernels) {
    int64_t num_outputs = 0;
    for (const MatrixPart& part : parts) num_outputs += part.num_rows;
    const int64_t width = gated ? 16 : 32;
    const int64_t columns = gated ? num_outputs / 2 : num_outputs;
    const int64_t num_panels = (columns + width - 1) / width;
    panels_ = Buffer(static_cast<size_t>(num_panels * panel_bytes(kind, num_inputs)) + kPanelSlack);
    if (is_integer(kind)) scales_ = Buffer(static_cast<size_t>(num_panels * kPanelOutputs) * sizeof(float));
    if (biases != nullptr) biases_ = Buffer(static_cast<size_t>(num_panels * kPanelOutputs) * sizeof(float));
    packed_ = {kind, gated, num_outputs, num_inputs, num_panels, panel_bytes(kind, num_inputs),
               panels_.data(), scales_.as<float>(), biases_.as<float>()};
    if (biases != nullptr) {
        for (int64_t row = 0; row < num_outputs; ++row) {
            const int64_t up = gated && row >= columns ? 16 : 0, column = row - (up ? columns : 0);
            biases_.as<float>()[column / width * kPanelOutputs + column % width + up] = biases[row];
        }
    }
    const PackArgs args = {&packed_, parts.data(), static_cast<int64_t>(parts.size())};
    pool.parallel([&](Team& team) { kernels.pack(args, team); });
}

}  // namespace ridgeline
