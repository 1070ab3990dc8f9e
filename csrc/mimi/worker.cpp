#include "mimi/worker.h"

#include <algorithm>

namespace csm::mimi {
namespace {

constexpr int kLeastRows = 12;  // rows in a block, so that a panel's weights are read for a full tile
constexpr int kImbalance = 20;  // blocks are cut finer until no worker has more than 1 / 20 too much

// Blocks of rows per panel that spread panels evenly over the workers.
int row_blocks(int panels, int rows, int workers) {
  const int most = std::max(1, rows / kLeastRows);
  for (int blocks = 1; blocks < most; ++blocks) {
    const int items = panels * blocks;
    const int largest = (items + workers - 1) / workers * workers;
    if ((largest - items) * kImbalance <= items) return blocks;
  }
  return most;
}

}  // namespace

void multiply(const Worker &worker, const DenseMatMul &product, int rows) {
  const DenseKernels &kernels = dense_kernels();
  if (worker.index == 0 && worker.profile->on()) {
    const double weights = static_cast<double>(product.w->n) * product.w->k;
    worker.profile->count(2 * weights * rows, (product.w->half ? 2.0 : 4.0) * weights);
  }
  const int panels = dense_panels(kernels, product.w->n);
  const int blocks = row_blocks(panels, rows, worker.count);
  const Range items = worker.share(panels * blocks);
  for (int item = items.begin; item < items.end; ++item) {
    const Range block = csm::share(rows, item % blocks, blocks);
    kernels.multiply(product, item / blocks, block.begin, block.end);
  }
}

}  // namespace csm::mimi
