// A pool of num_threads - 1 workers and the caller, which together run one region at a time.
//
// A step of the model is one region; kernels are separated by `Team::barrier`. Barriers spin for a bounded
// number of rounds and then sleep on the futex under std::atomic::wait, so an idle pool burns nothing and a preempted
// thread does not keep the others spinning for its whole time slice.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace ridgeline {

class ThreadPool;

// A half-open range of work items.
struct Range {
    int64_t begin;
    int64_t end;
};

// One thread's view of the region that it is in.
struct Team {
    ThreadPool* pool;
    int thread;
    int num_threads;

    // This thread's contiguous share of `num_items`, in units of `granule` items.
    Range share(int64_t num_items, int64_t granule = 1) const {
        const int64_t units = (num_items + granule - 1) / granule;
        const int64_t begin = units * thread / num_threads * granule;
        const int64_t end = units * (thread + 1) / num_threads * granule;
        return {begin < num_items ? begin : num_items, end < num_items ? end : num_items};
    }

    void barrier();

    // A 64-byte aligned buffer of this thread's own, kept between calls; the next call may move it.
    void* scratch(size_t num_bytes);

    // A counter shared by the team, for work that is dealt out as threads become free. `reset_counter` by
    // one thread must be separated by barriers from the uses.
    int64_t next_item();
    void reset_counter();
};

class ThreadPool {
public:
    // `enter` and `leave` run on each thread at the start and the end of every region (tile configuration).
    explicit ThreadPool(int num_threads, void (*enter)() = nullptr, void (*leave)() = nullptr);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int num_threads() const { return num_threads_; }

    // Whether its threads are set up for kernels that need this `enter`.
    bool enters_with(void (*enter)()) const { return enter_ == enter; }

    // Runs `body` on every thread and returns when all have. Calls from several threads queue up.
    // `body` must not throw. Throws std::runtime_error in a fork of the process that made the pool: threads are not inherited.
    void parallel(const std::function<void(Team&)>& body);

private:
    friend struct Team;
    struct Scratch;

    void work(int thread);
    void run(int thread);
    void wait_at_barrier();

    const int num_threads_;
    void (*const enter_)();
    void (*const leave_)();
    std::mutex entry_;
    const std::function<void(Team&)>* body_ = nullptr;
    std::unique_ptr<Scratch[]> scratch_;
    std::vector<std::thread> workers_;
    const int64_t process_;  // that has the workers
    alignas(64) std::atomic<uint32_t> region_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<int64_t> counter_{0};
    std::atomic<bool> stop_{false};
};

}  // namespace ridgeline
