#include "kernels/dense.h"

#include "foundation/isa.h"

namespace csm {

int dense_panels(const DenseKernels &kernels, int n) { return (n + kernels.panel - 1) / kernels.panel; }

size_t dense_packed_size(const DenseKernels &kernels, int n, int k) {
  const int padded = n == 1 ? 1 : (n + kernels.lane - 1) / kernels.lane * kernels.lane;
  return static_cast<size_t>(padded) * static_cast<size_t>(k);
}

const DenseKernels &dense_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
    case Isa::avx2_vnni: return kDenseAvx2;
    case Isa::avx512:
    case Isa::avx512_vnni: return kDenseAvx512;
#elif defined(__aarch64__)
    case Isa::neon:
    case Isa::neon_dotprod: return kDenseNeon;
#endif
    default: return kDenseScalar;
  }
}

const DenseKernels &dense_kernels() {
  static const DenseKernels &kernels = dense_kernels(active_isa());
  return kernels;
}

}  // namespace csm
