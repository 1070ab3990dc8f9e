// AVX-512 with VNNI: four products of bytes and their sum in one instruction.
#include <immintrin.h>

#include "kernels/kernels.h"

namespace csm {
namespace {

#include "kernels/quant_avx512.inc"
#include "kernels/vector_ops.inc"
#include "kernels/quantise_x86.inc"

#include "kernels/sums_i32.inc"

constexpr int kDotLines = 4;

template <int bits, int j>
inline void add_dots(Ints &sum, const Bytes *w, const std::int8_t *q) {
  for (int l = 0; l < kDotLines; ++l) sum.v = _mm512_dpbusd_epi32(sum.v, w[l], _mm512_set1_epi32(load_i32(q + 4 * l)));
}

#include "kernels/matmul.inc"

}  // namespace

const KernelTable kAvx512VnniKernels = {matmul_quantised, matmul_float, quantise,  rms_norm,
                                        silu_mul,         softmax,      add_scaled};

}  // namespace csm
