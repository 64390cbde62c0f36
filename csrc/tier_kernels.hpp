// Included by each tier_*.cpp: the kernel headers, compiled for RL_TIER, and the table of what they define.
#include "kernel_table.hpp"
#include "simd.hpp"

#include "elementwise.hpp"
#include "region.hpp"

namespace ridgeline::RL_TIER {

extern const KernelTable kTable;  // external linkage for isa.cpp

const KernelTable kTable = {
    .name = RL_STRINGIFY(RL_TIER),
    .enter_region = enter_region,
    .leave_region = leave_region,
    .add = add,
};

}  // namespace ridgeline::RL_TIER
