// AVX-512 F, BW, DQ, VL: 32 registers of 16 floats.
#include "kernels/dense.h"

#include <immintrin.h>

namespace csm {
namespace {

using V = __m512;
constexpr int kWidth = 16;
constexpr int kFull = 4;
constexpr int kRows[kFull + 1] = {0, 12, 12, 8, 6};
constexpr int kScores = 16;

inline V load(const float *p) { return _mm512_loadu_ps(p); }
inline V load(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))); }
inline void store(float *p, V v) { _mm512_storeu_ps(p, v); }
inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
inline V load_part(const float *p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline void store_part(float *p, V v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
inline V set1(float x) { return _mm512_set1_ps(x); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V min(V a, V b) { return _mm512_min_ps(a, b); }
inline V max(V a, V b) { return _mm512_max_ps(a, b); }
inline V abs(V a) { return _mm512_abs_ps(a); }
inline V select_positive(V test, V yes, V no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(test, _mm512_setzero_ps(), _CMP_GT_OQ), no, yes);
}
inline V round_nearest(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V pow2(V n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline float sum(V a) { return _mm512_reduce_add_ps(a); }
inline float maximum(V a) { return _mm512_reduce_max_ps(a); }

#include "kernels/dense_simd.inc"

}  // namespace

extern const DenseKernels kDenseAvx512;
const DenseKernels kDenseAvx512 = {kPanel, kWidth, multiply, layer_norm, attend};

}  // namespace csm
