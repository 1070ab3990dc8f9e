// The codec's tensors as the caller holds them, asked for by name and shape.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

namespace csm::mimi {

struct Tensor {
  const float *data;
  std::vector<long> shape;
};

// Hands out tensors and remembers every one that is missing or misshapen; check() reports them all.
class Tensors {
 public:
  explicit Tensors(std::unordered_map<std::string, Tensor> tensors) : tensors_(std::move(tensors)) {}

  // Null when the tensor is missing or has another shape: nothing may be read before check().
  const float *get(const std::string &name, const std::vector<long> &shape);

  // Throws std::invalid_argument listing all problems so far.
  void check() const;
  bool good() const { return problems_.empty(); }

 private:
  std::unordered_map<std::string, Tensor> tensors_;
  std::vector<std::string> problems_;
};

}  // namespace csm::mimi
