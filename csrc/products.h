// Products of packed matrices with batches of vectors, shared among the members of a thread pool.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/kernels.h"
#include "thread_pool.h"

namespace csm {

// Input or result of a product: n vectors in f32, and rounded to blocks where a quantised matrix takes them.
struct Activations {
  int cols = 0;
  int stride = 0;              // of f32, cols rounded up to whole panels
  std::vector<float> f32;      // (n, stride)
  std::vector<XBlock> blocks;  // (cols / 32, n)

  void resize(int columns, int n);
  float *row(int vector) { return f32.data() + static_cast<std::ptrdiff_t>(vector) * stride; }
  const float *row(int vector) const { return f32.data() + static_cast<std::ptrdiff_t>(vector) * stride; }
};

bool quantised(const PanelMatrix &matrix);

// Each function runs one member's share, inside a job of the pool; a barrier must separate it from the next that
// reads its result.
class Products {
 public:
  Products(ThreadPool &pool, const KernelTable &kernels) : pool_(pool), kernels_(kernels) {}

  int members() const { return pool_.threads(); }
  void barrier() const { pool_.barrier(); }
  const KernelTable &kernels() const { return kernels_; }

  // The member's share of n vectors.
  Range vectors_of(int member, int n) const { return share(n, member, members()); }
  // The member's share of a matrix: whole pairs of panels, which are the blocks of a product that takes their rows.
  Range panels_of(int member, const PanelMatrix &matrix) const;

  // Rounds the member's vectors to blocks.
  void round(int member, int n, Activations &in) const;
  // out = matrix in for the member's rows of the matrix; returns them. `next` is the matrix that the member reads
  // after this one: its start is prefetched.
  Range multiply(int member, const PanelMatrix &matrix, const PanelMatrix &next, const Activations &in, int n,
                 Activations &out) const;

 private:
  ThreadPool &pool_;
  const KernelTable &kernels_;
};

}  // namespace csm
