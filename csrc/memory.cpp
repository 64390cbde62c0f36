#include "memory.hpp"

#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ridgeline {

namespace {
constexpr size_t kHugePage = size_t{2} << 20;
}

Buffer::Buffer(size_t num_bytes) : num_bytes_(num_bytes) {
    if (num_bytes == 0) return;
    const bool large = num_bytes >= kHugePage;
    const size_t unit = large ? kHugePage : 64;
    if (num_bytes > SIZE_MAX - unit) throw std::bad_alloc();
    const size_t rounded = (num_bytes + unit - 1) / unit * unit;
#if defined(__linux__)
    if (large) {
        // One huge page more than asked for, so that the block can start on a boundary; the rest is given back.
        void* raw = mmap(nullptr, rounded + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (raw == MAP_FAILED) throw std::bad_alloc();
        const uintptr_t start = reinterpret_cast<uintptr_t>(raw);
        const uintptr_t aligned = (start + kHugePage - 1) / kHugePage * kHugePage;
        if (aligned > start) munmap(raw, aligned - start);
        munmap(reinterpret_cast<void*>(aligned + rounded), start + kHugePage - aligned);
        data_ = reinterpret_cast<uint8_t*>(aligned);
        madvise(data_, rounded, MADV_HUGEPAGE);
        num_bytes_ = rounded;
        return;
    }
#endif
    data_ = static_cast<uint8_t*>(std::aligned_alloc(64, rounded));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_, 0, rounded);
    num_bytes_ = rounded;
}

Buffer::~Buffer() {
#if defined(__linux__)
    if (num_bytes_ >= kHugePage) {
        munmap(data_, num_bytes_);
        return;
    }
#endif
    std::free(data_);
}

}  // namespace ridgeline
