// AVX-512 with VNNI: four products of bytes and their sum in one instruction.
#include <immintrin.h>

#include "kernels.h"

namespace csm {
namespace {

#include "quant_avx512.inc"
#include "vector_ops.inc"

template <int bits>
inline void dot16(Ints &acc, const Bytes *w, const std::int8_t *q) {
  for (int j = 0; j < 4; ++j) acc.v = _mm512_dpbusd_epi32(acc.v, w[j], _mm512_set1_epi32(load_i32(q + 4 * j)));
}

#include "product.inc"

}  // namespace

const KernelTable kAvx512VnniKernels = {product_quantised, product_float, quantise,   rms_norm,
                                        silu_mul,          softmax,       dot,        add_scaled};

}  // namespace csm
