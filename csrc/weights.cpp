#include "weights.h"

#include <new>

#include "kernels/pack.h"

namespace csm {

void EmbeddingTable::row(std::int64_t index, float *out) const {
  const std::size_t stride = row_bytes(*type_info(type), static_cast<std::size_t>(cols));
  dequantise_row(type, data + static_cast<std::size_t>(index) * stride, cols, out);
}

std::size_t WeightArena::packed_bytes(TensorType type, int rows, int cols) {
  return static_cast<std::size_t>((rows + kGroup - 1) / kGroup) * panel_bytes(type, cols);
}

PanelMatrix WeightArena::pack(const TensorSource &tensor, std::int64_t first_row, int rows, int cols,
                              ThreadPool &pool) {
  const std::size_t bytes = packed_bytes(tensor.type, rows, cols);
  if (used_ + bytes > memory_.size()) throw std::bad_alloc();
  std::uint8_t *panels = memory_.data() + used_;
  used_ += bytes;
  const PanelMatrix matrix{tensor.type, rows, cols, panel_bytes(tensor.type, cols), panels};
  const std::uint8_t *source = tensor.data + static_cast<std::size_t>(first_row) *
                                                 row_bytes(*type_info(tensor.type), static_cast<std::size_t>(cols));
  pool.run([&](int worker) {
    const Range groups = share(matrix.groups(), worker, pool.threads());
    for (int group = groups.begin; group < groups.end; ++group)
      pack_panel(tensor.type, source, rows, cols, group, panels + static_cast<std::size_t>(group) * matrix.panel_bytes);
  });
  return matrix;
}

}  // namespace csm
