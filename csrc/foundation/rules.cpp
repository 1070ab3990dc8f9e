#include "foundation/rules.h"

#include <cstdio>
#include <stdexcept>

namespace csm {
namespace {

std::string text(double value) {
  char out[32];
  std::snprintf(out, sizeof out, "%g", value);
  return out;
}

}  // namespace

void Rules::in_range(const char *name, long value, long least, long most) {
  require(value >= least && value <= most, std::string(name) + " is " + std::to_string(value) + ", must be " +
                                               std::to_string(least) + " to " + std::to_string(most));
}

void Rules::in_range(const char *name, double value, double least, double most, bool exclusive) {
  const bool enough = exclusive ? value > least : value >= least;  // false for NaN
  require(enough && value <= most, std::string(name) + " is " + text(value) + ", must be " +
                                       (exclusive ? "above " : "") + text(least) +
                                       (exclusive ? " and at most " : " to ") + text(most));
}

void Rules::check(const char *what) const {
  if (problems_.empty()) return;
  std::string text = std::string(what) + ": ";
  for (std::size_t i = 0; i < problems_.size(); ++i) text += (i == 0 ? "" : "; ") + problems_[i];
  throw std::invalid_argument(text);
}

}  // namespace csm
