// The Python module `ridgeline.runtime.native._native`.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "isa.hpp"

namespace nb = nanobind;

namespace ridgeline {

void bind_attention(nb::module_& module);
void bind_elementwise(nb::module_& module);
void bind_linear(nb::module_& module);
void bind_measure(nb::module_& module);
void bind_sample(nb::module_& module);
void bind_tape(nb::module_& module);

}  // namespace ridgeline

NB_MODULE(_native, module) {
    using namespace ridgeline;
    module.doc() = "C++ kernels of the native CPU backend.";
    // An engine that is not closed is still alive when the interpreter exits: no news to its user.
    nb::set_leak_warnings(false);

    module.def(
        "available_tiers",
        [] {
            std::vector<std::string> names;
            for (const KernelTable* tier : available_tiers()) names.emplace_back(tier->name);
            return names;
        },
        "Names of the kernel tiers that run on this machine, weakest first.");
    module.def("tier", [] { return std::string(kernels().name); },
               "The tier in use. Raises ValueError if RIDGELINE_ISA names one that does not run here.");

    nb::class_<ThreadPool>(module, "ThreadPool", "num_threads - 1 workers and the calling thread.")
        .def("__init__",
             [](ThreadPool* self, int num_threads, const std::string& tier) {
                 const KernelTable& table = tier.empty() ? kernels() : kernels_of(tier);
                 new (self) ThreadPool(num_threads, table.enter_region, table.leave_region);
             },
             nb::arg("num_threads"), nb::arg("tier") = "")
        .def_prop_ro("num_threads", &ThreadPool::num_threads);

    bind_attention(module);
    bind_elementwise(module);
    bind_linear(module);
    bind_measure(module);
    bind_sample(module);
    bind_tape(module);
}
