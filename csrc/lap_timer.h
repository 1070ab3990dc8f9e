// A stopwatch for the parts of a job that several threads run together.
#pragma once

#include <cstdint>

#include "foundation/thread_pool.h"

namespace csm {

class LapTimer {
 public:
  void start(bool on) {
    on_ = on;
    begin_ = waited_ = waits_.waited();
    last_ = BarrierWaits::now();
  }
  // Returns the seconds since start() that a member has waited at barriers, which count to no part.
  double stop() {
    on_ = false;
    return 1e-9 * (waits_.waited() - begin_);
  }

  bool on() const { return on_; }
  // What the pool is to count waits with.
  BarrierWaits *waits() { return on_ ? &waits_ : nullptr; }

  // Counts the time since the last lap, less the waits, to a part. Kept by member 0; a part ends with a barrier, whose
  // completion is everybody's clock, however late a member learns of it.
  void lap(int member, double &part) {
    if (!on_ || member != 0) return;
    const std::int64_t end = waits_.last_end() > last_ ? waits_.last_end() : BarrierWaits::now();  // alone: no barriers
    part += 1e-9 * (static_cast<double>(end - last_) - (waits_.waited() - waited_));
    last_ = end;
    waited_ = waits_.waited();
  }

 private:
  bool on_ = false;
  BarrierWaits waits_;
  double begin_ = 0;        // the waits at the start
  double waited_ = 0;       // the waits at the last lap
  std::int64_t last_ = 0;   // when that was
};

}  // namespace csm
