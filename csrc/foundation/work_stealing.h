// Shares out the work of one step among the members of a thread pool, such that nobody waits long for the slowest.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "foundation/thread_pool.h"

namespace csm {

// Members of a pool are rarely equally fast: cores differ, memory's bandwidth goes to whom it likes, and another
// program takes a core. So a member works through its own share in pieces, each half of what is left, and then takes
// the pieces that others have not begun.
class Pieces {
 public:
  explicit Pieces(int members) : counters_(static_cast<std::size_t>(members)) {}
  Pieces(const Pieces &) = delete;
  Pieces &operator=(const Pieces &) = delete;

  // One member's part of a round; all members call it with the same count and grain, as often as each other.
  // work(Range) gets pieces of [0, count), whole multiples of grain but for the last; all members' together are each
  // item once. Other members' last pieces may still be under way when it returns.
  template <class Work>
  void run(int member, int count, int grain, const Work &work) {
    const int members = static_cast<int>(counters_.size());
    if (members == 1) return work(Range{0, count});
    const std::uint64_t round = counters_[static_cast<std::size_t>(member)].rounds++;
    for (int i = 0; i < members; ++i) {
      const int owner = (member + i) % members;
      const Range own = share(count, owner, members, grain);
      for (int piece = claim(owner, round); piece < kPieces; piece = claim(owner, round)) {
        const Range range{cut(own, piece, grain), cut(own, piece + 1, grain)};
        if (range.begin < range.end) work(range);
      }
    }
  }

 private:
  static constexpr int kPieces = 6;  // of a share: the last two are 1 / 32 of it

  struct alignas(64) Counter {
    std::atomic<std::uint64_t> claimed{0};  // pieces of this member's shares, over all rounds: kPieces a round
    std::uint64_t rounds = 0;               // that this member has begun; its own
  };

  // Where a piece of a share begins.
  static int cut(Range own, int piece, int grain) {
    const int chunks = (own.end - own.begin + grain - 1) / grain, left = piece == kPieces ? 0 : chunks >> piece;
    return std::min(own.end, own.begin + (chunks - left) * grain);
  }

  // The next piece of a member's share that nobody has taken in this round; kPieces or more when all are. A round's
  // pieces are all taken before any member can come to the next round, so a counter may be ahead, but never loses any.
  int claim(int owner, std::uint64_t round) {
    std::atomic<std::uint64_t> &claimed = counters_[static_cast<std::size_t>(owner)].claimed;
    const std::uint64_t first = round * kPieces;
    std::uint64_t next = claimed.load(std::memory_order_relaxed);
    while (true) {
      const std::uint64_t mine = next < first ? first : next;
      if (mine >= first + kPieces) return kPieces;
      if (claimed.compare_exchange_weak(next, mine + 1, std::memory_order_relaxed)) return static_cast<int>(mine - first);
    }
  }

  std::vector<Counter> counters_;
};

}  // namespace csm
