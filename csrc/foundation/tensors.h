// Model tensors as they come from a file, asked for by name and shape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "foundation/tensor_type.h"

namespace csm {

// A tensor in a file: row-major, rows of whole quantisation blocks. Does not own its data.
struct TensorSource {
  TensorType type;
  std::vector<std::int64_t> shape;  // slowest dimension first
  const std::uint8_t *data;
  std::size_t bytes;
};
using TensorMap = std::map<std::string, TensorSource>;

// Takes tensors out of a map and collects all that is wrong with them. What it returns is null after a problem: nothing
// may be read from it before check() has passed, or while good() says no.
class TensorReader {
 public:
  using Shape = std::vector<std::int64_t>;

  explicit TensorReader(const TensorMap &tensors) : tensors_(tensors) {}

  // Of any type.
  const TensorSource *take(const std::string &name, const Shape &shape, bool optional = false);
  // The values of one that must be f32 or f16.
  const float *floats(const std::string &name, const Shape &shape);
  const std::uint16_t *halves(const std::string &name, const Shape &shape);
  // Whether it is there and of that type.
  bool has(const std::string &name, TensorType type) const;

  bool good() const { return problems_.empty(); }
  // Throws std::invalid_argument that lists every problem.
  void check() const;

 private:
  const std::uint8_t *values(const std::string &name, const Shape &shape, TensorType type);
  void problem(const std::string &text) { problems_.push_back(text); }

  const TensorMap &tensors_;
  std::vector<std::string> problems_;
};

}  // namespace csm
