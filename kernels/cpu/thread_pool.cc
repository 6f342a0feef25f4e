// The threads behind parallel.h. A loop costs about a microsecond to start while threads are awake; they stay
// awake for a short while after a loop, so that the many small loops of a step find them, and then sleep, so
// that waiting takes no core from anybody.
#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/parallel.h"

namespace moec::cpu {
namespace {

thread_local bool inside_loop = false;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

/// Runs one loop at a time. `next_` holds the loop's number in its high and the next index in its low 32
/// bits; an index is claimed by advancing it. Before the fields of a loop change, `next_` is closed: a thread
/// that has read a new field then fails to claim with an old `next_`, so a successful claim proves that all
/// fields belong together.
class ThreadPool {
 public:
  explicit ThreadPool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ~ThreadPool() {
    stop_ = true;
    wake();
    for (std::thread& worker : workers_) worker.join();
  }

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  void run(int64_t count, void (*body)(void*, int64_t), void* context) {
    const uint64_t loop = (next_.load(std::memory_order_relaxed) >> kIndexBits) + 1;
    next_.store(loop << kIndexBits | kClosed, std::memory_order_relaxed);
    body_.store(body, std::memory_order_release);
    context_.store(context, std::memory_order_release);
    count_.store(count, std::memory_order_release);
    done_.store(0, std::memory_order_relaxed);
    next_.store(loop << kIndexBits, std::memory_order_release);
    wake();
    help();
    for (int spins = 0; done_.load(std::memory_order_acquire) != count; ++spins)
      spins < kSpins ? relax() : std::this_thread::yield();
  }

 private:
  static constexpr int kIndexBits = 32;
  static constexpr uint64_t kClosed = (uint64_t{1} << kIndexBits) - 1;  // an index above every count
  static constexpr int kSpins = 4000;                                   // some 50 microseconds

  void wake() {
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) epoch_.notify_all();
  }

  /// Computes pieces of the current loop until none is left.
  void help() {
    inside_loop = true;
    uint64_t next = next_.load(std::memory_order_acquire);
    while (true) {
      const auto body = body_.load(std::memory_order_acquire);
      void* context = context_.load(std::memory_order_acquire);
      const auto index = static_cast<int64_t>(next & kClosed);
      if (index >= count_.load(std::memory_order_acquire)) break;
      if (!next_.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel, std::memory_order_acquire))
        continue;
      body(context, index);
      done_.fetch_add(1, std::memory_order_release);
      next = next_.load(std::memory_order_acquire);
    }
    inside_loop = false;
  }

  void work() {
    uint32_t seen = 0;
    while (!stop_.load(std::memory_order_relaxed)) {
      uint32_t epoch = epoch_.load(std::memory_order_acquire);
      for (int spins = 0; epoch == seen && spins < kSpins; ++spins) {
        relax();
        epoch = epoch_.load(std::memory_order_acquire);
      }
      if (epoch == seen) {
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        epoch_.wait(seen, std::memory_order_seq_cst);
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
        continue;
      }
      seen = epoch;
      help();
    }
  }

  std::atomic<void (*)(void*, int64_t)> body_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int64_t> count_{0};
  std::atomic<int64_t> done_{0};
  std::atomic<uint64_t> next_{0};
  std::atomic<uint32_t> epoch_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

int available_cores() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }

/// The process's pool: made at first use, so that a program that runs no kernel starts no thread.
struct SharedPool {
  std::mutex mutex;  // one loop at a time; callers from several threads take turns
  int wanted = 0;    // 0: all cores
  std::unique_ptr<ThreadPool> pool;

  ThreadPool& get() {
    const int count = wanted > 0 ? wanted : available_cores();
    if (!pool || pool->threads() != count) pool = std::make_unique<ThreadPool>(count);
    return *pool;
  }
};

SharedPool& shared_pool() {
  static SharedPool shared;
  return shared;
}

}  // namespace

void set_threads(int threads) {
  const std::lock_guard lock(shared_pool().mutex);
  shared_pool().wanted = threads;
}

int threads() {
  const std::lock_guard lock(shared_pool().mutex);
  return shared_pool().wanted > 0 ? shared_pool().wanted : available_cores();
}

void run_parallel(int64_t count, void (*body)(void* context, int64_t i), void* context) {
  if (count <= 1 || inside_loop) {
    for (int64_t i = 0; i < count; ++i) body(context, i);
    return;
  }
  SharedPool& shared = shared_pool();
  const std::lock_guard lock(shared.mutex);
  ThreadPool& pool = shared.get();
  if (pool.threads() == 1) {
    for (int64_t i = 0; i < count; ++i) body(context, i);
    return;
  }
  pool.run(count, body, context);
}

}  // namespace moec::cpu
