// The codec's tensors as the caller holds them, asked for by name and shape.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace csm::mimi {

struct Tensor {
  const void *data;
  std::vector<long> shape;
  bool half;  // IEEE half precision, else float32
};

// Hands out tensors and remembers every one that is missing or misshapen; check() reports them all.
class Tensors {
 public:
  explicit Tensors(std::unordered_map<std::string, Tensor> tensors) : tensors_(std::move(tensors)) {}

  // Null when the tensor is missing, has another shape or is no float32: nothing may be read before check().
  const float *get(const std::string &name, const std::vector<long> &shape);

  // For what may be in half precision: whether it is there so, and its data then.
  bool is_half(const std::string &name) const;
  const uint16_t *get_half(const std::string &name, const std::vector<long> &shape);

  // Throws std::invalid_argument listing all problems so far.
  void check() const;
  bool good() const { return problems_.empty(); }

 private:
  const void *find(const std::string &name, const std::vector<long> &shape, bool half);

  std::unordered_map<std::string, Tensor> tensors_;
  std::vector<std::string> problems_;
};

}  // namespace csm::mimi
