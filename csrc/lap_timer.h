// A stopwatch for the parts of a job that several threads run together.
#pragma once

#include <chrono>

namespace csm {

class LapTimer {
 public:
  void start(bool on) {
    on_ = on;
    last_ = std::chrono::steady_clock::now();
  }
  void stop() { on_ = false; }

  // Counts the time since the last lap to a part. Kept by member 0: a part ends with a barrier, so its clock is
  // everybody's.
  void lap(int member, double &part) {
    if (!on_ || member != 0) return;
    const auto now = std::chrono::steady_clock::now();
    part += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  bool on_ = false;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace csm
