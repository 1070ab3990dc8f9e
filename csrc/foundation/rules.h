// The rules that a configuration's sizes must keep, and which of them are broken.
#pragma once

#include <string>
#include <vector>

namespace csm {

class Rules {
 public:
  void require(bool holds, const std::string &rule) {
    if (!holds) problems_.push_back(rule);
  }
  void in_range(const char *name, long value, long least, long most);
  // least may be exclusive, for what must be above zero.
  void in_range(const char *name, double value, double least, double most, bool exclusive = false);

  const std::vector<std::string> &problems() const { return problems_; }
  // Throws std::invalid_argument that lists every problem.
  void check(const char *what) const;

 private:
  std::vector<std::string> problems_;
};

// Bounds of the sizes of towers and codecs alike: generous, but such that products of sizes stay inside an int and that
// a hostile file cannot ask for terabytes.
constexpr long kLargestVocab = 1 << 20;
constexpr long kMostCodebooks = 256;
constexpr double kLargestRopeTheta = 1e12;

}  // namespace csm
