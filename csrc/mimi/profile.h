// Where a call's time goes, stage by stage; nothing is measured unless asked for.
#pragma once

#include <chrono>
#include <map>
#include <string>

namespace csm::mimi {

struct StageTime {
  double seconds = 0;
  double flops = 0;         // of its matrix products
  double weight_bytes = 0;  // that they read, each panel once per call
};

// Kept by member 0 of a team: every stage ends with a barrier, so its clock is everybody's.
class Profile {
 public:
  void begin() { last_ = Clock::now(); }
  void count(double flops, double weight_bytes) {
    flops_ += flops;
    weight_bytes_ += weight_bytes;
  }
  void end_stage(const char *stage, int index);

  const std::map<std::string, StageTime> &stages() const { return stages_; }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_;
  double flops_ = 0, weight_bytes_ = 0;
  std::map<std::string, StageTime> stages_;
};

}  // namespace csm::mimi
