// Memory for weights, caches and activations: zeroed, 64-byte aligned, in huge pages where the system has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace ridgeline {

class Buffer {
public:
    Buffer() = default;
    // Throws std::bad_alloc. Pages are made when first touched.
    explicit Buffer(size_t num_bytes);
    ~Buffer();
    Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(num_bytes_, other.num_bytes_);
        return *this;
    }

    uint8_t* data() const { return data_; }
    size_t num_bytes() const { return num_bytes_; }
    template <class T>
    T* as() const { return reinterpret_cast<T*>(data_); }

private:
    uint8_t* data_ = nullptr;
    size_t num_bytes_ = 0;
};

}  // namespace ridgeline
