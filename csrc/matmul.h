// Products of packed matrices with batches of vectors, shared among the workers of a thread pool.
#pragma once

#include <cstddef>
#include <vector>

#include "foundation/thread_pool.h"
#include "foundation/work_stealing.h"
#include "kernels/kernels.h"

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

// Each function runs one worker's share, inside a job of the pool; a barrier must separate it from the next that
// reads its result.
class MatMul {
 public:
  MatMul(ThreadPool &pool, const KernelTable &kernels) : pool_(pool), kernels_(kernels), stealing_(pool.threads()) {}

  int workers() const { return pool_.threads(); }
  void barrier() const { pool_.barrier(); }
  const KernelTable &kernels() const { return kernels_; }

  // The worker's share of n vectors.
  Range vectors_of(int worker, int n) const { return share(n, worker, workers()); }
  // Rounds the worker's vectors to blocks.
  void round(int worker, int n, Activations &in) const;

  // out = matrix in. finish(Range rows) is called for the rows that this worker has made, chunk by chunk: whole pairs
  // of panels, which are the blocks of a product that takes them. `next` is the matrix that is read after this one: its
  // start is prefetched.
  template <class Finish>
  void multiply(int worker, const PanelMatrix &matrix, const PanelMatrix &next, const Activations &in, int n,
                Activations &out, const Finish &finish) {
    const std::uint8_t *then = start_of(worker, next);
    each_chunk(worker, matrix, [&](Range groups, bool last) {
      finish(multiply_groups(matrix, groups, last ? then : panel(matrix, groups.end), in, n, out));
    });
  }
  void multiply(int worker, const PanelMatrix &matrix, const PanelMatrix &next, const Activations &in, int n,
                Activations &out) {
    multiply(worker, matrix, next, in, n, out, [](Range) {});
  }

  // The same for two matrices of one shape, as one step.
  template <class Finish>
  void multiply_pair(int worker, const PanelMatrix &a, const PanelMatrix &b, const PanelMatrix &next,
                     const Activations &in, int n, Activations &out_a, Activations &out_b, const Finish &finish) {
    const std::uint8_t *then = start_of(worker, next);
    each_chunk(worker, a, [&](Range groups, bool last) {
      multiply_groups(a, groups, panel(b, groups.begin), in, n, out_a);
      finish(multiply_groups(b, groups, last ? then : panel(a, groups.end), in, n, out_b));
    });
  }

 private:
  static const std::uint8_t *panel(const PanelMatrix &matrix, int group) {
    return matrix.panels + matrix.panel_bytes * static_cast<std::size_t>(group);
  }
  // Where a worker begins to read a matrix.
  const std::uint8_t *start_of(int worker, const PanelMatrix &matrix) const;
  // work(Range groups, whether the worker's own share ends with them)
  template <class Work>
  void each_chunk(int worker, const PanelMatrix &matrix, const Work &work) {
    const int end = share(matrix.groups(), worker, workers(), kPair).end;
    stealing_.run(worker, matrix.groups(), kPair, [&](Range groups) { work(groups, groups.end == end); });
  }
  // Returns the rows.
  Range multiply_groups(const PanelMatrix &matrix, Range groups, const std::uint8_t *then, const Activations &in, int n,
                        Activations &out) const;

  static constexpr int kPair = 2;  // panels of a block of 32 rows

  ThreadPool &pool_;
  const KernelTable &kernels_;
  WorkStealing stealing_;
};

}  // namespace csm
