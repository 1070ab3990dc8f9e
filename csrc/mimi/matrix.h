// Weight matrices packed for the kernels in force.
#pragma once

#include <vector>

#include "foundation/memory.h"
#include "kernels/dense.h"

namespace csm::mimi {

struct Matrix {
  int n = 0;          // outputs
  int k = 0;          // inputs
  bool half = false;  // in half precision: two to a float of `data`
  Buffer data;        // packed as PackedMatrix says
  Buffer bias;        // (n rounded up to a lane)

  PackedMatrix view() const {
    if (half) return {n, k, nullptr, reinterpret_cast<const uint16_t *>(data.data()), bias.data()};
    return {n, k, data.data(), nullptr, bias.data()};
  }
};

// Where element (output n, input k) of a matrix lies: weights[n_index(n) + k_index(k)].
struct Layout {
  std::vector<long> n_offsets;  // (n)
  std::vector<long> k_offsets;  // (k)
};

// Packs weights (and a bias of n, or null) for the kernels given, those in force by default.
Matrix pack(const float *weights, const Layout &layout, const float *bias,
            const DenseKernels &kernels = dense_kernels());
Matrix pack(const uint16_t *half, const Layout &layout, const float *bias,
            const DenseKernels &kernels = dense_kernels());

// Layout of a row-major (n, k) matrix.
Layout row_major(int n, int k);

}  // namespace csm::mimi
