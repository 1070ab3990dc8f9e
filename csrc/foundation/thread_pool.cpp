#include "foundation/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include <unistd.h>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace csm {
namespace {

constexpr int kSpins = 4000;  // about 50 us: longer than the gap between two products, shorter than a frame

// CPUs that this process may use: with more threads than those, spinning would only keep the awaited worker from its
// CPU.
int usable_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

inline void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

}  // namespace

struct ThreadPool::State {
  explicit State(int threads) : size(threads), spins(threads <= usable_cpus() ? kSpins : 0) {}
  ~State() {
    stop.store(true, std::memory_order_release);
    begin();
    for (std::thread &thread : started) thread.join();
  }

  const pid_t process = getpid();  // which has the threads: a fork of it has none
  const int size;
  const int spins;
  BarrierWaits *waits = nullptr;  // of the job; null: not counted
  std::mutex callers;             // one job at a time
  std::vector<std::thread> started;
  std::mutex mutex;
  std::condition_variable wake;
  const std::function<void(int)> *job = nullptr;
  std::atomic<unsigned> generation{0};  // counts jobs
  std::atomic<int> running{0};          // workers that have not finished the job
  std::atomic<bool> stop{false};
  // Of a barrier, in one cache line: the last to arrive has it when it lets the others go.
  alignas(64) std::atomic<int> arrived{0};
  std::atomic<unsigned> phase{0};  // counts barriers

  void work(int worker) noexcept {
    unsigned seen = 0;
    while (true) {
      for (int i = 0; i < spins && generation.load(std::memory_order_acquire) == seen; ++i) pause_cpu();
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
      }
      seen = generation.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_acquire)) return;
      (*job)(worker);
      running.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  void begin() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      generation.fetch_add(1, std::memory_order_acq_rel);
    }
    wake.notify_all();
  }
};

ThreadPool::ThreadPool(int threads) : state_(new State(threads)) {
  if (threads < 1)
    throw std::invalid_argument("a thread pool needs at least one thread, not " + std::to_string(threads));
  state_->started.reserve(static_cast<std::size_t>(threads - 1));
  try {
    for (int worker = 1; worker < threads; ++worker)
      state_->started.emplace_back([state = state_.get(), worker] { state->work(worker); });
  } catch (const std::system_error &error) {
    throw std::runtime_error("the system refuses to start " + std::to_string(threads) + " threads: use fewer (" +
                             error.what() + ")");
  }
}

ThreadPool::~ThreadPool() {
  if (state_->process != getpid()) static_cast<void>(state_.release());  // there are no threads here to wait for
}

int ThreadPool::threads() const { return state_->size; }

void ThreadPool::run(const std::function<void(int)> &job, BarrierWaits *waits) {
  State &state = *state_;
  if (state.process != getpid())
    throw std::runtime_error(
        "the model was loaded before this process was forked, and its threads stayed behind: load"
        " it in the new process, or start that by multiprocessing's \"spawn\"");
  const std::lock_guard<std::mutex> alone(state.callers);
  const auto own = [&]() noexcept { job(0); };
  if (state.size == 1) return own();
  state.job = &job;
  state.waits = waits;
  state.running.store(state.size - 1, std::memory_order_release);
  state.begin();
  own();
  for (int i = 0; state.running.load(std::memory_order_acquire) > 0; ++i) {
    if (i < state.spins) pause_cpu();
    else std::this_thread::yield();
  }
}

void ThreadPool::barrier() {
  State &state = *state_;
  if (state.size == 1) return;
  const unsigned phase = state.phase.load(std::memory_order_acquire);
  if (state.waits != nullptr) state.waits->arrive();
  if (state.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == state.size) {
    if (state.waits != nullptr) state.waits->end(state.size);
    state.arrived.store(0, std::memory_order_relaxed);
    state.phase.fetch_add(1, std::memory_order_release);
    return;
  }
  for (int i = 0; state.phase.load(std::memory_order_acquire) == phase; ++i) {
    if (i < state.spins) pause_cpu();
    else std::this_thread::yield();
  }
}

Range share(int count, int worker, int workers, int grain) {
  const long chunks = (count + grain - 1) / grain;
  const int begin = static_cast<int>(chunks * worker / workers) * grain;
  const int end = static_cast<int>(chunks * (worker + 1) / workers) * grain;
  return {std::min(begin, count), std::min(end, count)};
}

}  // namespace csm
