#include "mimi/tensors.h"

#include <stdexcept>

namespace csm::mimi {
namespace {

std::string text(const std::vector<long> &shape) {
  std::string out = "(";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + ")";
}

}  // namespace

const void *Tensors::find(const std::string &name, const std::vector<long> &shape, bool half) {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    problems_.push_back(name + ": missing");
    return nullptr;
  }
  if (found->second.shape != shape) {
    problems_.push_back(name + ": shape " + text(found->second.shape) + ", expected " + text(shape));
    return nullptr;
  }
  if (found->second.half != half) {
    problems_.push_back(
        name + (half ? ": float32, expected float16 like its neighbours" : ": float16, expected float32"));
    return nullptr;
  }
  return found->second.data;
}

const float *Tensors::get(const std::string &name, const std::vector<long> &shape) {
  return static_cast<const float *>(find(name, shape, false));
}

bool Tensors::is_half(const std::string &name) const {
  const auto found = tensors_.find(name);
  return found != tensors_.end() && found->second.half;
}

const uint16_t *Tensors::get_half(const std::string &name, const std::vector<long> &shape) {
  return static_cast<const uint16_t *>(find(name, shape, true));
}

void Tensors::check() const {
  if (problems_.empty()) return;
  std::string all = "the codec's tensors do not fit its configuration, " + std::to_string(problems_.size()) +
                    " problems: ";
  for (size_t i = 0; i < problems_.size(); ++i) all += (i ? "; " : "") + problems_[i];
  throw std::invalid_argument(all);
}

}  // namespace csm::mimi
