// Shares out the work of one step among a pool's workers, so that none waits long for the slowest.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "foundation/thread_pool.h"

namespace csm {

// Workers are rarely equally fast: cores differ, memory's bandwidth is shared unevenly, and another program may take a
// core. So a worker goes through its own share in chunks, each half of what is left, and then takes the chunks that
// others have not begun.
class WorkStealing {
 public:
  explicit WorkStealing(int workers) : counters_(static_cast<std::size_t>(workers)) {}
  WorkStealing(const WorkStealing &) = delete;
  WorkStealing &operator=(const WorkStealing &) = delete;

  // One worker's part of a round; all workers call it with the same count and grain, and equally often.
  // work(Range) gets chunks of [0, count), whole multiples of grain but for the last; all workers together
  // get each item once. Other workers' last chunks may still be under way when it returns.
  template <class Work>
  void run(int worker, int count, int grain, const Work &work) {
    const int workers = static_cast<int>(counters_.size());
    if (workers == 1) return work(Range{0, count});
    const std::uint64_t round = counters_[static_cast<std::size_t>(worker)].rounds++;
    for (int i = 0; i < workers; ++i) {
      const int owner = (worker + i) % workers;
      const Range own = share(count, owner, workers, grain);
      for (int chunk = claim(owner, round); chunk < kChunks; chunk = claim(owner, round)) {
        const Range range{cut(own, chunk, grain), cut(own, chunk + 1, grain)};
        if (range.begin < range.end) work(range);
      }
    }
  }

 private:
  static constexpr int kChunks = 6;  // of a share: the last two are 1 / 32 of it

  struct alignas(64) Counter {
    std::atomic<std::uint64_t> claimed{0};  // chunks of this worker's shares, over all rounds: kChunks a round
    std::uint64_t rounds = 0;               // that this worker has begun; its own
  };

  // Where a chunk of a share begins.
  static int cut(Range own, int chunk, int grain) {
    const int grains = (own.end - own.begin + grain - 1) / grain, left = chunk == kChunks ? 0 : grains >> chunk;
    return std::min(own.end, own.begin + (grains - left) * grain);
  }

  // The next chunk of a worker's share that is not taken yet in this round; kChunks or more when all are. A round's
  // chunks are all taken before any worker can come to the next round, so a counter may be ahead, but never loses any.
  int claim(int owner, std::uint64_t round) {
    std::atomic<std::uint64_t> &claimed = counters_[static_cast<std::size_t>(owner)].claimed;
    const std::uint64_t first = round * kChunks;
    std::uint64_t next = claimed.load(std::memory_order_relaxed);
    while (true) {
      const std::uint64_t mine = next < first ? first : next;
      if (mine >= first + kChunks) return kChunks;
      if (claimed.compare_exchange_weak(next, mine + 1, std::memory_order_relaxed))
        return static_cast<int>(mine - first);
    }
  }

  std::vector<Counter> counters_;
};

}  // namespace csm
