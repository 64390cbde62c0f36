// One function pointer per kernel. Each tier fills one table; `isa.hpp` chooses among them at load.
#pragma once

#include <cstdint>

#include "kernel_args.hpp"
#include "thread_pool.hpp"

namespace ridgeline {

struct KernelTable {
    const char* name;

    // Called by every thread at the start and the end of a region (the AMX tile configuration); may be null.
    void (*enter_region)();
    void (*leave_region)();

    void (*add)(const AddArgs&, Team&);
};

}  // namespace ridgeline
