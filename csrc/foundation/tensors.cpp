#include "foundation/tensors.h"

#include <stdexcept>

#include "foundation/quant_blocks.h"

namespace csm {
namespace {

std::string shape_text(const TensorReader::Shape &shape) {
  std::string out = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + ")";
}

}  // namespace

const TensorSource *TensorReader::take(const std::string &name, const Shape &shape, bool optional) {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    if (!optional) problem(name + " is missing; it must have the shape " + shape_text(shape));
    return nullptr;
  }
  const TensorSource &tensor = found->second;
  const TypeInfo *info = type_info(tensor.type);
  if (info == nullptr) {
    problem(name + " has the GGML type " + std::to_string(static_cast<int>(tensor.type)) + ", which is not supported");
    return nullptr;
  }
  if (tensor.shape != shape) {
    problem(name + " has the shape " + shape_text(tensor.shape) + ", not " + shape_text(shape));
    return nullptr;
  }
  if (shape.back() % info->block != 0) {
    problem(name + " has rows of " + std::to_string(shape.back()) + ", not whole " + info->name + " blocks of " +
            std::to_string(info->block));
    return nullptr;
  }
  std::size_t rows = 1;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows *= static_cast<std::size_t>(shape[i]);
  const std::size_t bytes = rows * row_bytes(*info, static_cast<std::size_t>(shape.back()));
  if (tensor.bytes != bytes) {
    problem(name + " holds " + std::to_string(tensor.bytes) + " bytes, not the " + std::to_string(bytes) +
            " of its shape");
    return nullptr;
  }
  return &tensor;
}

const std::uint8_t *TensorReader::values(const std::string &name, const Shape &shape, TensorType type) {
  const TensorSource *tensor = take(name, shape);
  if (tensor == nullptr || tensor->type == type) return tensor == nullptr ? nullptr : tensor->data;
  problem(name + " is of type " + type_info(tensor->type)->name + ", not " + type_info(type)->name);
  return nullptr;
}

const float *TensorReader::floats(const std::string &name, const Shape &shape) {
  return reinterpret_cast<const float *>(values(name, shape, TensorType::f32));
}

const std::uint16_t *TensorReader::halves(const std::string &name, const Shape &shape) {
  return reinterpret_cast<const std::uint16_t *>(values(name, shape, TensorType::f16));
}

bool TensorReader::has(const std::string &name, TensorType type) const {
  const auto found = tensors_.find(name);
  return found != tensors_.end() && found->second.type == type;
}

void TensorReader::check() const {
  if (problems_.empty()) return;
  std::string text = "unusable weights: ";
  for (std::size_t i = 0; i < problems_.size(); ++i) text += (i == 0 ? "" : "; ") + problems_[i];
  throw std::invalid_argument(text);
}

}  // namespace csm
