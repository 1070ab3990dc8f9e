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

// CPUs that this process may use: with a larger team, spinning would only keep the awaited member from its CPU.
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

struct ThreadPool::Team {
  explicit Team(int threads) : size(threads), spins(threads <= usable_cpus() ? kSpins : 0) {}
  ~Team() {
    stop.store(true, std::memory_order_release);
    begin();
    for (std::thread &worker : workers) worker.join();
  }

  const pid_t process = getpid();  // which has the workers: a fork of it has none
  const int size;
  const int spins;
  BarrierWaits *waits = nullptr;  // of the job; null: not counted
  std::mutex callers;  // one job at a time
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake;
  const std::function<void(int)> *job = nullptr;
  std::atomic<unsigned> generation{0};  // counts jobs
  std::atomic<int> running{0};          // workers that have not finished the job
  std::atomic<bool> stop{false};
  // Of a barrier, in one cache line: the last to arrive has it when it lets the others go.
  alignas(64) std::atomic<int> arrived{0};
  std::atomic<unsigned> phase{0};  // counts barriers

  void work(int member) noexcept {
    unsigned seen = 0;
    while (true) {
      for (int i = 0; i < spins && generation.load(std::memory_order_acquire) == seen; ++i) pause_cpu();
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
      }
      seen = generation.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_acquire)) return;
      (*job)(member);
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

ThreadPool::ThreadPool(int threads) : team_(new Team(threads)) {
  if (threads < 1) throw std::invalid_argument("a thread pool needs at least one thread, not " + std::to_string(threads));
  team_->workers.reserve(static_cast<std::size_t>(threads - 1));
  try {
    for (int member = 1; member < threads; ++member)
      team_->workers.emplace_back([team = team_.get(), member] { team->work(member); });
  } catch (const std::system_error &error) {
    throw std::runtime_error("the system refuses to start " + std::to_string(threads) + " threads: use fewer (" +
                             error.what() + ")");
  }
}

ThreadPool::~ThreadPool() {
  if (team_->process != getpid()) static_cast<void>(team_.release());  // there are no workers here to wait for
}

int ThreadPool::threads() const { return team_->size; }

void ThreadPool::run(const std::function<void(int)> &job, BarrierWaits *waits) {
  Team &team = *team_;
  if (team.process != getpid())
    throw std::runtime_error("the model was loaded before this process was forked, and its threads stayed behind: load"
                             " it in the new process, or start that by multiprocessing's \"spawn\"");
  const std::lock_guard<std::mutex> alone(team.callers);
  const auto own = [&]() noexcept { job(0); };
  if (team.size == 1) return own();
  team.job = &job;
  team.waits = waits;
  team.running.store(team.size - 1, std::memory_order_release);
  team.begin();
  own();
  for (int i = 0; team.running.load(std::memory_order_acquire) > 0; ++i) {
    if (i < team.spins) pause_cpu();
    else std::this_thread::yield();
  }
}

void ThreadPool::barrier() {
  Team &team = *team_;
  if (team.size == 1) return;
  const unsigned phase = team.phase.load(std::memory_order_acquire);
  if (team.waits != nullptr) team.waits->arrive();
  if (team.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == team.size) {
    if (team.waits != nullptr) team.waits->end(team.size);
    team.arrived.store(0, std::memory_order_relaxed);
    team.phase.fetch_add(1, std::memory_order_release);
    return;
  }
  for (int i = 0; team.phase.load(std::memory_order_acquire) == phase; ++i) {
    if (i < team.spins) pause_cpu();
    else std::this_thread::yield();
  }
}

Range share(int count, int member, int members, int grain) {
  const long chunks = (count + grain - 1) / grain;
  const int begin = static_cast<int>(chunks * member / members) * grain;
  const int end = static_cast<int>(chunks * (member + 1) / members) * grain;
  return {std::min(begin, count), std::min(end, count)};
}

}  // namespace csm
