#include "mimi/matrix.h"

#include <algorithm>

namespace csm::mimi {
namespace {

template <class Weight>
Matrix pack_as(const Weight *weights, const Layout &layout, const float *bias, const DenseKernels &kernels) {
  Matrix m;
  m.n = static_cast<int>(layout.n_offsets.size());
  m.k = static_cast<int>(layout.k_offsets.size());
  m.half = sizeof(Weight) == sizeof(uint16_t);
  const size_t elements = dense_packed_size(kernels, m.n, m.k), per_float = sizeof(float) / sizeof(Weight);
  m.data = Buffer((elements + per_float - 1) / per_float);
  const int lane = kernels.lane;
  const long *k_offsets = layout.k_offsets.data();
  // Whichever index moves less in memory is the inner loop.
  const bool inputs_adjacent =
      m.n == 1 || m.k == 1 || k_offsets[1] - k_offsets[0] < layout.n_offsets[1] - layout.n_offsets[0];
  m.bias = Buffer(static_cast<size_t>((m.n + lane - 1) / lane * lane));
  if (bias) std::copy(bias, bias + m.n, m.bias.data());
  for (int first = 0; first < m.n; first += kernels.panel) {
    const int columns = std::min(kernels.panel, m.n - first);
    const int width = m.n == 1 ? 1 : (columns + lane - 1) / lane * lane;
    Weight *panel = reinterpret_cast<Weight *>(m.data.data()) + static_cast<size_t>(first) * static_cast<size_t>(m.k);
    const long *n_offsets = layout.n_offsets.data() + first;
    const auto put = [&](long k, long c) { panel[k * width + c] = weights[n_offsets[c] + k_offsets[k]]; };
    if (inputs_adjacent) {
      for (long c = 0; c < columns; ++c)
        for (long k = 0; k < m.k; ++k) put(k, c);
    } else {
      for (long k = 0; k < m.k; ++k)
        for (long c = 0; c < columns; ++c) put(k, c);
    }
  }
  return m;
}

}  // namespace

Matrix pack(const float *weights, const Layout &layout, const float *bias, const DenseKernels &kernels) {
  return pack_as(weights, layout, bias, kernels);
}

Matrix pack(const uint16_t *half, const Layout &layout, const float *bias, const DenseKernels &kernels) {
  return pack_as(half, layout, bias, kernels);
}

Layout row_major(int n, int k) {
  Layout layout;
  for (long i = 0; i < n; ++i) layout.n_offsets.push_back(i * k);
  for (long i = 0; i < k; ++i) layout.k_offsets.push_back(i);
  return layout;
}

}  // namespace csm::mimi
