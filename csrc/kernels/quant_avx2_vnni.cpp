// AVX2 with AVX-VNNI: four products of bytes and their sum in one instruction on 256-bit registers, for the CPUs that
// have VNNI and no AVX-512.
#include <immintrin.h>

#include "kernels/kernels.h"

namespace csm {
namespace {

constexpr int kQuantTile = 4;  // for each vector a sum and an accumulator, with one line of weights: 9 of 16 registers

#include "kernels/quant_avx2.inc"
#include "kernels/vector_ops.inc"
#include "kernels/quantise_x86.inc"

#include "kernels/sums_i32.inc"

constexpr int kDotLines = 1;

#if defined(__AVXVNNI__)
inline __m256i add_dot(__m256i sum, Bytes w, Bytes x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
#else  // AVX-512's encoding of the same instruction, see CSM_HYBRID_AVX_VNNI_AS_EVEX
inline __m256i add_dot(__m256i sum, Bytes w, Bytes x) { return _mm256_dpbusd_epi32(sum, w, x); }
#endif

template <int bits, int j>
inline void add_dots(Ints &sum, const Bytes *w, const std::int8_t *q) {
  sum.v = add_dot(sum.v, w[0], splat_columns(q));
}

#include "kernels/matmul.inc"

}  // namespace

const KernelTable kAvx2VnniKernels = {matmul_quantised, matmul_float, quantise,  rms_norm,
                                      silu_mul,         softmax,      add_scaled};

}  // namespace csm
