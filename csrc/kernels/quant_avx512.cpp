// AVX-512 without VNNI: products of bytes are summed in pairs to 16 bits (vpmaddubsw), then to 32 bits.
#include <immintrin.h>

#include "kernels/kernels.h"

namespace csm {
namespace {

#include "kernels/quant_avx512.inc"
#include "kernels/vector_ops.inc"
#include "kernels/quantise_x86.inc"

struct Words {
  __m512i v;
};
inline Words pairs(Bytes w, Bytes x) { return {_mm512_maddubs_epi16(w, x)}; }
inline Bytes splat_columns(const std::int8_t *q) { return _mm512_set1_epi32(load_i32(q)); }
inline Words add(Words a, Words b) { return {_mm512_add_epi16(a.v, b.v)}; }
inline Ints add(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
template <int factor>
inline Ints widen(Words sums) {
  return {_mm512_madd_epi16(sums.v, _mm512_set1_epi16(factor))};
}

#include "kernels/sums_i16.inc"
#include "kernels/matmul.inc"

}  // namespace

const KernelTable kAvx512Kernels = {matmul_quantised, matmul_float, quantise, rms_norm, silu_mul, softmax, add_scaled};

}  // namespace csm
