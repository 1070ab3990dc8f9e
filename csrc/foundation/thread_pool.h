// A fixed set of threads that run one job at a time, all on the same function. Each of them is a worker, with a number.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

namespace csm {

// How long the workers wait for the last of them at the barriers of a job. One of them may read it between
// two barriers.
class BarrierWaits {
 public:
  // Nanoseconds of a clock that never goes back.
  static std::int64_t now() {
    using std::chrono::nanoseconds;
    return std::chrono::duration_cast<nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  double waited() const { return waited_; }            // nanoseconds in all, the mean over the workers
  std::int64_t last_end() const { return last_end_; }  // now() when the last barrier was complete; 0: there was none

 private:
  friend class ThreadPool;
  void arrive() { arrivals_.fetch_add(now(), std::memory_order_acq_rel); }
  // By the last to arrive, before it lets the others go.
  void end(int workers) {
    last_end_ = now();
    waited_ += static_cast<double>(last_end_ * workers - arrivals_.exchange(0, std::memory_order_acq_rel)) / workers;
  }

  std::atomic<std::int64_t> arrivals_{0};  // at this barrier: the sum of their times
  std::int64_t last_end_ = 0;
  double waited_ = 0;
};

class ThreadPool {
 public:
  // `threads` >= 1 workers; the caller of run() is worker 0. Throws std::runtime_error where the system gives
  // no more threads.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  int threads() const;

  // Calls job(worker) on every worker, 0 <= worker < threads(), and returns when all are done.
  // Callers on several threads take turns. The job must not throw, nor call run(). `waits`: where to count how long
  // workers wait at the job's barriers; null: nowhere. Throws std::runtime_error in a process forked from the one that
  // made the pool, which has no threads of it.
  void run(const std::function<void(int worker)> &job, BarrierWaits *waits = nullptr);

  // Inside a job: waits until every worker has come here.
  void barrier();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The half-open share [begin, end) of `count` items that falls to `worker` of `workers`,
// in whole multiples of `grain`.
struct Range {
  int begin;
  int end;
};
Range share(int count, int worker, int workers, int grain = 1);

}  // namespace csm
