// Python's view of the measuring kernels: each call runs a number of rounds and says how long they took.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <chrono>
#include <vector>

#include "isa.hpp"
#include "memory.hpp"
#include "thread_pool.hpp"

namespace nb = nanobind;

namespace ridgeline {

namespace {

constexpr int64_t kPageFloats = 1024;

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

Unit unit_of(const std::string& name) {
    if (name == "float32") return Unit::kFloat32;
    if (name == "vnni_int8") return Unit::kVnniInt8;
    if (name == "amx_int8") return Unit::kAmxInt8;
    if (name == "amx_bf16") return Unit::kAmxBf16;
    refuse("unit: '" + name + "' is not one of float32, vnni_int8, amx_int8, amx_bf16");
}

// A buffer in the kind of pages that weights have, and the threads that read it.
class Probe {
public:
    Probe(ThreadPool& pool, int64_t num_bytes, const std::string& tier)
        : pool_(pool), table_(tier.empty() ? kernels() : kernels_of(tier)), sums_(static_cast<size_t>(pool.num_threads())) {
        if (!pool.enters_with(table_.enter_region)) refuse(std::string("pool: made for another tier than ") + table_.name);
        if (num_bytes < kPageFloats * 4) refuse("num_bytes: at least 4096");
        buffer_ = Buffer(static_cast<size_t>(num_bytes));
        const nb::gil_scoped_release release;
        pool_.parallel([&](Team& team) {  // each thread touches the part that it will read
            const Range part = team.share(num_bytes / 4, kPageFloats);
            for (int64_t i = part.begin; i < part.end; ++i) buffer_.as<float>()[i] = 1.0f;
        });
    }

    double read(int64_t num_bytes, int64_t rounds, bool prefetches) {
        if (num_bytes < kPageFloats * 4 || num_bytes > static_cast<int64_t>(buffer_.num_bytes())) refuse("num_bytes: from 4096 to the size of the probe");
        if (rounds < 1) refuse("rounds: at least 1");
        return timed(table_.measure_read, ReadArgs{buffer_.as<float>(), num_bytes / 4, rounds, prefetches, sums_.data()});
    }

    int64_t operations(const std::string& unit) const { return table_.peak_operations(unit_of(unit)); }

    double peak(const std::string& unit, int64_t rounds) {
        if (operations(unit) == 0) refuse("unit: tier " + std::string(table_.name) + " has no " + unit);
        if (rounds < 1) refuse("rounds: at least 1");
        return timed(table_.measure_peak, PeakArgs{unit_of(unit), rounds, sums_.data()});
    }

private:
    template <class Args>
    double timed(void (*kernel)(const Args&, Team&), const Args& args) {
        const nb::gil_scoped_release release;
        const auto begin = std::chrono::steady_clock::now();
        pool_.parallel([&](Team& team) { kernel(args, team); });
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }

    ThreadPool& pool_;
    const KernelTable& table_;
    std::vector<float> sums_;
    Buffer buffer_;
};

}  // namespace

void bind_measure(nb::module_& module) {
    nb::class_<Probe>(module, "Probe", "A buffer of `num_bytes` and a pool's threads, to measure what the machine can do at most.")
        .def(nb::init<ThreadPool&, int64_t, const std::string&>(), nb::arg("pool"), nb::arg("num_bytes"), nb::arg("tier") = "",
             nb::keep_alive<1, 2>())
        .def("read", &Probe::read, nb::arg("num_bytes"), nb::arg("rounds"), nb::arg("prefetches"),
             "Seconds in which all threads together read the first `num_bytes`, `rounds` times.")
        .def("operations", &Probe::operations, nb::arg("unit"),
             "Operations (a multiply-add is two) of one round on one thread; 0 where the tier has no such unit.")
        .def("peak", &Probe::peak, nb::arg("unit"), nb::arg("rounds"),
             "Seconds of `rounds` rounds on every thread. unit: float32, vnni_int8, amx_int8 or amx_bf16.");
}

}  // namespace ridgeline
