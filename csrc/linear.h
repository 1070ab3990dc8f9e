// One packed matrix on its own: y = W x, for an engine that runs the tower elsewhere.
#pragma once

#include <memory>
#include <mutex>

#include "foundation/thread_pool.h"
#include "kernels/kernels.h"
#include "matmul.h"
#include "weights.h"

namespace csm {

class Linear {
 public:
  // Packs a (rows, cols) tensor; its data may go afterwards.
  // Throws std::invalid_argument for an unsupported type or a size that does not fit.
  Linear(const TensorSource &tensor, int rows, int cols, std::shared_ptr<ThreadPool> pool, const KernelTable &kernels);

  // x: (n, cols); y out: (n, rows). Quantised types round x to blocks first, as the decoder does.
  void multiply(int n, const float *x, float *y);

  int rows() const { return matrix_.rows; }
  int cols() const { return matrix_.cols; }

 private:
  std::shared_ptr<ThreadPool> pool_;
  MatMul matmul_;
  WeightArena arena_;
  PanelMatrix matrix_;
  Activations in_;   // (n, cols)
  Activations out_;  // (n, rows)
  std::mutex mutex_;
};

}  // namespace csm
