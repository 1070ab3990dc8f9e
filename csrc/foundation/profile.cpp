#include "foundation/profile.h"

namespace csm {

Profile::Profile(std::initializer_list<const char *> stages) {
  for (const char *name : stages) result_.stages[name];
}

void Profile::measure(bool on) {
  measuring_ = on;
  if (!on) return;
  for (auto &[name, time] : result_.stages) time = {};
  result_.waited = 0;
}

void Profile::begin(bool counted) {
  on_ = measuring_ && counted;
  begin_waits_ = last_waits_ = waits_.waited();
  last_ = BarrierWaits::now();
}

void Profile::end() {
  if (on_) result_.waited += 1e-9 * (waits_.waited() - begin_waits_);
  on_ = false;
}

void Profile::add(const char *name, int number) {
  // Without counted barriers, on one thread above all, the stage ends now.
  const std::int64_t end = waits_.last_end() > last_ ? waits_.last_end() : BarrierWaits::now();
  std::string key(name);
  if (number >= 0) key += "." + std::to_string(number);
  StageTime &time = result_.stages[key];
  time.seconds += 1e-9 * (static_cast<double>(end - last_) - (waits_.waited() - last_waits_));
  time.flops += flops_;
  time.weight_bytes += weight_bytes_;
  last_ = end;
  last_waits_ = waits_.waited();
  flops_ = weight_bytes_ = 0;
}

}  // namespace csm
