// Where the time of a pass goes, stage by stage; nothing is measured unless asked for.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>

#include "foundation/thread_pool.h"

namespace csm {

struct StageTime {
  double seconds = 0;       // less the waits at barriers, where the pool counts them (waits())
  double flops = 0;         // of its matrix products, where they are counted
  double weight_bytes = 0;  // that they read, each panel once a pass
};

struct ProfileResult {
  std::map<std::string, StageTime> stages;
  double waited = 0;  // seconds at barriers, the mean over the workers
};

// A stopwatch that worker 0 keeps for all workers of a pass: a stage ends with a barrier, and ends for all of them when
// that is complete, however late a worker notices.
class Profile {
 public:
  // These stages are there from the start, with no time yet.
  explicit Profile(std::initializer_list<const char *> stages = {});

  // Measures passes from now on, anew, or stops; what was found stays.
  void measure(bool on);

  // Around a pass; `counted`: whether this one is measured, if passes are.
  void begin(bool counted = true);
  void end();
  bool on() const { return on_; }
  // What the pool is to count waits with, so that they count to no stage.
  BarrierWaits *waits() { return on_ ? &waits_ : nullptr; }

  // The stage that a barrier has just ended; with a number, `name`.`number`.
  void end_stage(int worker, const char *name, int number = -1) {
    if (on_ && worker == 0) add(name, number);
  }
  // Products of the stage under way; by worker 0.
  void count(double flops, double weight_bytes) {
    flops_ += flops;
    weight_bytes_ += weight_bytes;
  }

  const ProfileResult &result() const { return result_; }

 private:
  void add(const char *name, int number);

  bool measuring_ = false;
  bool on_ = false;
  BarrierWaits waits_;
  double begin_waits_ = 0;  // nanoseconds in waits_ at the start of the pass
  double last_waits_ = 0;   // at the end of the last stage
  std::int64_t last_ = 0;   // when that was
  double flops_ = 0, weight_bytes_ = 0;
  ProfileResult result_;
};

}  // namespace csm
