#include "mimi/profile.h"

namespace csm::mimi {

void Profile::end_stage(const char *stage, int index) {
  const Clock::time_point now = Clock::now();
  StageTime &time = stages_[index < 0 ? std::string(stage) : std::string(stage) + "." + std::to_string(index)];
  time.seconds += std::chrono::duration<double>(now - last_).count();
  time.flops += flops_;
  time.weight_bytes += weight_bytes_;
  last_ = now;
  flops_ = weight_bytes_ = 0;
}

}  // namespace csm::mimi
