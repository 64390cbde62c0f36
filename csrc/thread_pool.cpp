#include "thread_pool.hpp"

#include <cstdlib>
#include <new>
#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace ridgeline {

namespace {

constexpr int kSpinRounds = 1000;  // about 50 us: longer than a kernel's skew, shorter than a time slice

inline void pause_briefly() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

int64_t this_process() {
#if defined(__unix__) || defined(__APPLE__)
    return getpid();
#else
    return 0;  // no fork here
#endif
}

void wait_for_change(const std::atomic<uint32_t>& value, uint32_t old) {
    for (int round = 0; round < kSpinRounds; ++round) {
        if (value.load(std::memory_order_acquire) != old) return;
        pause_briefly();
    }
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

struct alignas(64) ThreadPool::Scratch {
    void* data = nullptr;
    size_t num_bytes = 0;

    ~Scratch() { std::free(data); }
};

void Team::barrier() { pool->wait_at_barrier(); }

void* Team::scratch(size_t num_bytes) {
    ThreadPool::Scratch& own = pool->scratch_[static_cast<size_t>(thread)];
    if (own.num_bytes < num_bytes) {
        std::free(own.data);
        own.num_bytes = (num_bytes + 4095) / 4096 * 4096;
        own.data = std::aligned_alloc(64, own.num_bytes);
        if (own.data == nullptr) std::abort();  // as the kernel would do to us on first touch
    }
    return own.data;
}

int64_t Team::next_item() { return pool->counter_.fetch_add(1, std::memory_order_relaxed); }

void Team::reset_counter() { pool->counter_.store(0, std::memory_order_relaxed); }

ThreadPool::ThreadPool(int num_threads, void (*enter)(), void (*leave)())
    : num_threads_(num_threads), enter_(enter), leave_(leave), process_(this_process()) {
    if (num_threads < 1 || num_threads > 1024) throw std::invalid_argument("num_threads must be within 1..1024");
    scratch_ = std::make_unique<Scratch[]>(static_cast<size_t>(num_threads));
    for (int thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
    if (process_ != this_process()) {
        new std::vector<std::thread>(std::move(workers_));  // not ours to join, and a joinable thread may not be destroyed
        return;
    }
    stop_.store(true, std::memory_order_release);
    region_.fetch_add(1, std::memory_order_release);
    region_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::parallel(const std::function<void(Team&)>& body) {
    if (process_ != this_process()) throw std::runtime_error("the thread pool was made before a fork: its threads are not in this process");
    const std::lock_guard<std::mutex> lock(entry_);
    body_ = &body;
    region_.fetch_add(1, std::memory_order_release);
    region_.notify_all();
    run(0);
}

void ThreadPool::work(int thread) {
    uint32_t seen = 0;
    for (;;) {
        wait_for_change(region_, seen);
        ++seen;
        if (stop_.load(std::memory_order_acquire)) return;
        run(thread);
    }
}

void ThreadPool::run(int thread) {
    if (enter_ != nullptr) enter_();
    Team team{this, thread, num_threads_};
    (*body_)(team);
    if (leave_ != nullptr) leave_();
    wait_at_barrier();  // nobody leaves before all are done: the next region may start at once
}

void ThreadPool::wait_at_barrier() {
    if (num_threads_ == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads_) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.fetch_add(1, std::memory_order_release);
        phase_.notify_all();
        return;
    }
    wait_for_change(phase_, phase);
}

}  // namespace ridgeline
