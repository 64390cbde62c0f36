// Which tier of kernels to run: the best that was compiled in and that this machine supports.
#pragma once

#include <string>
#include <vector>

#include "kernel_table.hpp"

namespace ridgeline {

// Tiers that were compiled in and run here, weakest first. Asks the kernel for AMX state on first use.
const std::vector<const KernelTable*>& available_tiers();

// The table of `tier`. Raises std::invalid_argument naming the tier and those available.
const KernelTable& kernels_of(const std::string& tier);

// The chosen table: RIDGELINE_ISA if it is set, else the strongest available. Decided once.
const KernelTable& kernels();

}  // namespace ridgeline
