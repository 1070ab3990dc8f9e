#include "linear.h"

#include <algorithm>

namespace csm {

Linear::Linear(const TensorSource &tensor, int rows, int cols, std::shared_ptr<ThreadPool> pool,
               const KernelTable &kernels)
    : pool_(std::move(pool)), matmul_(*pool_, kernels) {
  const TensorMap map{{"data", tensor}};
  TensorReader reader(map);
  reader.take("data", {rows, cols});
  reader.check();
  arena_.reserve(WeightArena::packed_bytes(tensor.type, rows, cols));
  matrix_ = arena_.pack(tensor, 0, rows, cols, *pool_);
}

void Linear::multiply(int n, const float *x, float *y) {
  const std::lock_guard<std::mutex> lock(mutex_);
  in_.resize(matrix_.cols, n);
  out_.resize(matrix_.rows, n);
  pool_->run([&](int worker) {
    const Range mine = matmul_.vectors_of(worker, n);
    for (int b = mine.begin; b < mine.end; ++b)
      std::copy_n(x + static_cast<std::ptrdiff_t>(b) * matrix_.cols, matrix_.cols, in_.row(b));
    if (quantised(matrix_)) matmul_.round(worker, n, in_);
    pool_->barrier();
    matmul_.multiply(worker, matrix_, matrix_, in_, n, out_, [&](Range rows) {
      for (int b = 0; b < n; ++b)
        std::copy(out_.row(b) + rows.begin, out_.row(b) + rows.end,
                  y + static_cast<std::ptrdiff_t>(b) * matrix_.rows + rows.begin);
    });
  });
}

}  // namespace csm
