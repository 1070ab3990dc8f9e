#include "linear.h"

#include <algorithm>

namespace csm {

Linear::Linear(const TensorSource &tensor, int rows, int cols, std::shared_ptr<ThreadPool> pool,
               const KernelTable &kernels)
    : pool_(std::move(pool)), kernels_(kernels) {
  const TensorMap map{{"data", tensor}};
  TensorReader reader(map);
  reader.take("data", {rows, cols});
  reader.check();
  arena_.reserve(WeightArena::packed_bytes(tensor.type, rows, cols));
  matrix_ = arena_.pack(tensor, 0, rows, cols, *pool_);
}

void Linear::multiply(int n, const float *x, float *y) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool quantised = type_info(matrix_.type)->quantised;
  const int blocks = matrix_.cols / kBlock, stride = matrix_.padded_rows();
  if (quantised) blocks_.resize(static_cast<std::size_t>(blocks) * static_cast<std::size_t>(n));
  sums_.resize(static_cast<std::size_t>(n) * static_cast<std::size_t>(stride));
  pool_->run([&](int member) {
    if (quantised) {
      const Range vectors = share(n, member, pool_->threads());
      for (int b = vectors.begin; b < vectors.end; ++b)
        kernels_.quantise(x + static_cast<std::ptrdiff_t>(b) * matrix_.cols, blocks, &blocks_[static_cast<std::size_t>(b)], n);
      pool_->barrier();
    }
    const Range groups = share(matrix_.groups(), member, pool_->threads());
    if (quantised)
      kernels_.product_quantised(matrix_, groups.begin, groups.end, blocks_.data(), n, sums_.data(), stride, matrix_.panels);
    else
      kernels_.product_float(matrix_, groups.begin, groups.end, x, matrix_.cols, n, sums_.data(), stride, matrix_.panels);
    const int begin = std::min(groups.begin * kGroup, matrix_.rows), end = std::min(groups.end * kGroup, matrix_.rows);
    for (int b = 0; b < n; ++b)
      std::copy(sums_.data() + static_cast<std::ptrdiff_t>(b) * stride + begin,
                sums_.data() + static_cast<std::ptrdiff_t>(b) * stride + end,
                y + static_cast<std::ptrdiff_t>(b) * matrix_.rows + begin);
  });
}

}  // namespace csm
