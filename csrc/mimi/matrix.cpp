#include "mimi/matrix.h"

#include <algorithm>

namespace csm::mimi {

Matrix pack(const float *weights, const Layout &layout, const float *bias, const DenseKernels &kernels) {
  Matrix m;
  m.n = static_cast<int>(layout.n_offsets.size());
  m.k = static_cast<int>(layout.k_offsets.size());
  m.data = Buffer(dense_packed_size(kernels, m.n, m.k));
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
    float *panel = m.data.data() + static_cast<size_t>(first) * static_cast<size_t>(m.k);
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

Layout row_major(int n, int k) {
  Layout layout;
  for (long i = 0; i < n; ++i) layout.n_offsets.push_back(i * k);
  for (long i = 0; i < k; ++i) layout.k_offsets.push_back(i);
  return layout;
}

}  // namespace csm::mimi
