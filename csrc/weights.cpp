#include "weights.h"

#include <new>
#include <stdexcept>

#include "kernels/pack.h"

namespace csm {
namespace {

std::string shape_text(const std::vector<std::int64_t> &shape) {
  std::string out = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + ")";
}

}  // namespace

const TensorSource *TensorReader::take(const std::string &name, const std::vector<std::int64_t> &shape, bool optional) {
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
    problem(name + " holds " + std::to_string(tensor.bytes) + " bytes, not the " + std::to_string(bytes) + " of its shape");
    return nullptr;
  }
  return &tensor;
}

void TensorReader::check() const {
  if (problems_.empty()) return;
  std::string text = "unusable weights: ";
  for (std::size_t i = 0; i < problems_.size(); ++i) text += (i == 0 ? "" : "; ") + problems_[i];
  throw std::invalid_argument(text);
}

void EmbeddingTable::row(std::int64_t index, float *out) const {
  const std::size_t stride = row_bytes(*type_info(type), static_cast<std::size_t>(cols));
  dequantise_row(type, data + static_cast<std::size_t>(index) * stride, cols, out);
}

std::size_t WeightArena::packed_bytes(TensorType type, int rows, int cols) {
  return static_cast<std::size_t>((rows + kGroup - 1) / kGroup) * panel_bytes(type, cols);
}

PanelMatrix WeightArena::pack(const TensorSource &tensor, std::int64_t first_row, int rows, int cols, ThreadPool &pool) {
  const std::size_t bytes = packed_bytes(tensor.type, rows, cols);
  if (used_ + bytes > memory_.size()) throw std::bad_alloc();
  std::uint8_t *panels = memory_.data() + used_;
  used_ += bytes;
  const PanelMatrix matrix{tensor.type, rows, cols, panel_bytes(tensor.type, cols), panels};
  const std::uint8_t *source =
      tensor.data + static_cast<std::size_t>(first_row) * row_bytes(*type_info(tensor.type), static_cast<std::size_t>(cols));
  pool.run([&](int member) {
    const Range groups = share(matrix.groups(), member, pool.threads());
    for (int group = groups.begin; group < groups.end; ++group)
      pack_panel(tensor.type, source, rows, cols, group, panels + static_cast<std::size_t>(group) * matrix.panel_bytes);
  });
  return matrix;
}

}  // namespace csm
