// The reference: plain loops and the C library's exp, expm1 and erf.
#include "kernels/dense.h"

#include <cmath>

namespace csm {
namespace {

constexpr int kPanel = 16;
constexpr int kLane = 4;

ptrdiff_t offset(int row, int per_block, ptrdiff_t row_stride, ptrdiff_t block_stride) {
  return (row / per_block) * block_stride + (row % per_block) * row_stride;
}
const float *at(const ConstRows &rows, int row) {
  return rows.base + offset(row, rows.per_block, rows.row_stride, rows.block_stride);
}
float *at(const Rows &rows, int row) {
  return rows.base + offset(row, rows.per_block, rows.row_stride, rows.block_stride);
}

#include "foundation/float_bits.inc"

float activate(Activation activation, float v) {
  switch (activation) {
    case Activation::elu: return v > 0 ? v : std::expm1(v);
    case Activation::gelu: return 0.5f * v * (1 + std::erf(v * 0.70710678f));
    default: return v;
  }
}

void finish(const DenseMatMul &p, int row, int column, float v) {
  if (p.skip.base) v = at(p.skip, row)[column] + (p.scale ? p.scale[column] : 1.0f) * v;
  if (p.y.base) at(p.y, row)[column] = v;
  if (p.active.base) at(p.active, row)[column] = activate(p.activation, v);
}

void multiply(const DenseMatMul &p, int panel, int begin, int end) {
  const PackedMatrix &w = *p.w;
  const int first = panel * kPanel;
  const int columns = w.n - first < kPanel ? w.n - first : kPanel;
  const int width = w.n == 1 ? 1 : (columns + kLane - 1) / kLane * kLane;
  const ptrdiff_t start = static_cast<ptrdiff_t>(first) * w.k;
  for (int row = begin; row < end; ++row) {
    const float *x = at(p.x, row);
    float sums[kPanel];
    for (int c = 0; c < columns; ++c) sums[c] = w.bias[first + c];
    for (int k = 0; k < w.k; ++k) {
      const ptrdiff_t at_k = start + static_cast<ptrdiff_t>(k) * width;
      for (int c = 0; c < columns; ++c) sums[c] += x[k] * (w.half ? half_to_float(w.half[at_k + c]) : w.data[at_k + c]);
    }
    for (int c = 0; c < columns; ++c) finish(p, row, first + c, sums[c]);
  }
}

void layer_norm(const float *x, const float *gamma, const float *beta, float eps, int n, float *y) {
  float mean = 0, variance = 0;
  for (int i = 0; i < n; ++i) mean += x[i];
  mean /= static_cast<float>(n);
  for (int i = 0; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean);
  const float inverse = 1 / std::sqrt(variance / static_cast<float>(n) + eps);
  for (int i = 0; i < n; ++i) y[i] = (x[i] - mean) * inverse * gamma[i] + beta[i];
}

void attend(const Attention &a) {
  float top = -INFINITY, sum = 0;
  for (int s = 0; s < a.positions; ++s) {
    float dot = 0;
    for (int d = 0; d < a.head_dim; ++d) dot += a.q[d] * a.keys[static_cast<ptrdiff_t>(d) * a.key_stride + s];
    a.scores[s] = dot * a.scale;
    top = a.scores[s] > top ? a.scores[s] : top;
  }
  for (int s = 0; s < a.positions; ++s) sum += a.scores[s] = std::exp(a.scores[s] - top);
  for (int d = 0; d < a.value_stride; ++d) {
    float mix = 0;
    for (int s = 0; s < a.positions; ++s) mix += a.scores[s] * a.values[static_cast<ptrdiff_t>(s) * a.value_stride + d];
    a.out[d] = mix / sum;
  }
}

}  // namespace

const DenseKernels kDenseScalar = {kPanel, kLane, multiply, layer_norm, attend};

}  // namespace csm
