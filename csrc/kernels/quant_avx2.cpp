// AVX2, FMA and F16C: a register holds 8 of a panel's 16 rows; products of bytes are summed in pairs to 16 bits.
#include <immintrin.h>

#include "kernels/kernels.h"

namespace csm {
namespace {

constexpr int kQuantTile = 4;  // with 8-bit weights 8 sums of 16 bits, 2 nibbles and their input: 11 of 16 registers

#include "kernels/quant_avx2.inc"
#include "kernels/vector_ops.inc"
#include "kernels/quantise_x86.inc"

struct Words {
  __m256i v;
};
inline Words pairs(Bytes w, Bytes x) { return {_mm256_maddubs_epi16(w, x)}; }
inline Words add(Words a, Words b) { return {_mm256_add_epi16(a.v, b.v)}; }
template <int factor>
inline Ints widen(Words sums) {
  return {_mm256_madd_epi16(sums.v, _mm256_set1_epi16(factor))};
}
inline Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.v, b.v)}; }

#include "kernels/sums_i16.inc"
#include "kernels/matmul.inc"

}  // namespace

const KernelTable kAvx2Kernels = {matmul_quantised, matmul_float, quantise, rms_norm, silu_mul, softmax, add_scaled};

}  // namespace csm
