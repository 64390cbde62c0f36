#include "isa.hpp"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace ridgeline {

namespace portable { extern const KernelTable kTable; }
#if defined(RL_HAVE_AVX2)
namespace avx2 { extern const KernelTable kTable; }
#endif
#if defined(RL_HAVE_AVX512)
namespace avx512 { extern const KernelTable kTable; }
#endif
#if defined(RL_HAVE_AMX)
namespace amx { extern const KernelTable kTable; }
#endif

namespace {

#if defined(__x86_64__)

// Register `reg` (0..3: eax ebx ecx edx) of a CPUID leaf; 0 where the leaf does not exist.
uint32_t cpuid(uint32_t leaf, uint32_t subleaf, int reg) {
    uint32_t regs[4] = {};
    if (!__get_cpuid_count(leaf, subleaf, &regs[0], &regs[1], &regs[2], &regs[3])) return 0;
    return regs[reg];
}

bool bit(uint32_t word, int index) { return (word >> index) & 1u; }

// Register state that the operating system saves (XCR0); 0 without XSAVE.
uint64_t enabled_state() {
    if (!bit(cpuid(1, 0, 2), 27)) return 0;  // OSXSAVE
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
}

bool has_avx2() {
    return (enabled_state() & 0x6) == 0x6 && bit(cpuid(1, 0, 2), 12) && bit(cpuid(1, 0, 2), 29) && bit(cpuid(7, 0, 1), 5);
}

bool has_avx512() {
    const uint32_t ebx = cpuid(7, 0, 1);
    return has_avx2() && (enabled_state() & 0xe6) == 0xe6 && bit(ebx, 16) && bit(ebx, 17) && bit(ebx, 30) && bit(ebx, 31) &&
           bit(cpuid(7, 0, 2), 11);  // F DQ BW VL VNNI
}

// Linux grants the 8 KB of tile state per process, on request.
bool tile_state_granted() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

bool has_amx() {
    const uint32_t edx = cpuid(7, 0, 3);
    return has_avx512() && (enabled_state() & 0x60000) == 0x60000 && bit(edx, 22) && bit(edx, 24) && bit(edx, 25) &&
           bit(cpuid(7, 1, 0), 5) && tile_state_granted();  // AMX BF16, TILE, INT8; AVX512_BF16
}

#endif

std::vector<const KernelTable*> find_tiers() {
    std::vector<const KernelTable*> tiers{&portable::kTable};
#if defined(RL_HAVE_AVX2)
    if (has_avx2()) tiers.push_back(&avx2::kTable);
#endif
#if defined(RL_HAVE_AVX512)
    if (has_avx512()) tiers.push_back(&avx512::kTable);
#endif
#if defined(RL_HAVE_AMX)
    if (has_amx()) tiers.push_back(&amx::kTable);
#endif
    return tiers;
}

std::string names_of(const std::vector<const KernelTable*>& tiers) {
    std::string names;
    for (const KernelTable* tier : tiers) names += (names.empty() ? "" : ", ") + std::string(tier->name);
    return names;
}

}  // namespace

const std::vector<const KernelTable*>& available_tiers() {
    static const std::vector<const KernelTable*> tiers = find_tiers();
    return tiers;
}

const KernelTable& kernels_of(const std::string& tier) {
    for (const KernelTable* table : available_tiers())
        if (tier == table->name) return *table;
    throw std::invalid_argument("no kernels for '" + tier + "' on this machine; available: " + names_of(available_tiers()));
}

const KernelTable& kernels() {
    static const KernelTable& chosen = [&]() -> const KernelTable& {
        const char* forced = std::getenv("RIDGELINE_ISA");
        if (forced == nullptr || *forced == '\0') return *available_tiers().back();
        try {
            return kernels_of(forced);
        } catch (const std::invalid_argument& error) {
            throw std::invalid_argument(std::string("RIDGELINE_ISA: ") + error.what());
        }
    }();
    return chosen;
}

}  // namespace ridgeline
