// Philox 4x32-10 (Salmon et al., SC 2011): the random number of (seed, position), whatever was drawn before or beside it.
// The same numbers as ridgeline/runtime/philox.py; both are tested against the authors' known answers.
#pragma once

#include <cstdint>

namespace ridgeline {

// [0, 1) with 53 random bits.
static inline double philox_uniform(uint64_t seed, uint64_t position) {
    uint32_t c0 = static_cast<uint32_t>(position), c1 = static_cast<uint32_t>(position >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t low = uint64_t{0xD2511F53} * c0, high = uint64_t{0xCD9E8D57} * c2;
        c0 = static_cast<uint32_t>(high >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(high);
        c2 = static_cast<uint32_t>(low >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(low);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    const uint64_t bits = (static_cast<uint64_t>(c0 >> 5) << 26) + (c1 >> 6);
    return static_cast<double>(bits) / 9007199254740992.0;  // 2^53
}

}  // namespace ridgeline
