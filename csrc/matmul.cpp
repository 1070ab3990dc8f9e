#include "matmul.h"

#include <algorithm>

#include "foundation/quant_blocks.h"

namespace csm {

void Activations::resize(int columns, int n) {
  cols = columns;
  stride = (columns + kGroup - 1) / kGroup * kGroup;
  f32.resize(static_cast<std::size_t>(stride) * static_cast<std::size_t>(n));
  blocks.resize(static_cast<std::size_t>(columns / kBlock) * static_cast<std::size_t>(n));
}

bool quantised(const PanelMatrix &matrix) { return type_info(matrix.type)->quantised; }

static_assert(kBlock == 2 * kGroup, "a pair of panels makes whole blocks");

const std::uint8_t *MatMul::start_of(int worker, const PanelMatrix &matrix) const {
  return panel(matrix, share(matrix.groups(), worker, workers(), kPair).begin);
}

void MatMul::round(int worker, int n, Activations &in) const {
  const Range mine = vectors_of(worker, n);
  for (int i = mine.begin; i < mine.end; ++i)
    kernels_.quantise(in.row(i), in.cols / kBlock, &in.blocks[static_cast<std::size_t>(i)], n);
}

Range MatMul::multiply_groups(const PanelMatrix &matrix, Range groups, const std::uint8_t *then, const Activations &in,
                              int n, Activations &out) const {
  if (quantised(matrix))
    kernels_.matmul_quantised(matrix, groups.begin, groups.end, in.blocks.data(), n, out.f32.data(), out.stride, then);
  else
    kernels_.matmul_float(matrix, groups.begin, groups.end, in.f32.data(), in.stride, n, out.f32.data(), out.stride,
                          then);
  return {std::min(groups.begin * kGroup, matrix.rows), std::min(groups.end * kGroup, matrix.rows)};
}

}  // namespace csm
