// AArch64 baseline: 32 registers of 4 floats.
#include "kernels/dense.h"

#include <arm_neon.h>

namespace csm {
namespace {

using V = float32x4_t;
constexpr int kWidth = 4;
constexpr int kFull = 4;
constexpr int kRows[kFull + 1] = {0, 12, 12, 8, 6};
constexpr int kScores = 16;

inline V load(const float *p) { return vld1q_f32(p); }
inline V load(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline void store(float *p, V v) { vst1q_f32(p, v); }
inline V load_part(const float *p, int n) {
  float all[4] = {0, 0, 0, 0};
  for (int i = 0; i < n; ++i) all[i] = p[i];
  return vld1q_f32(all);
}
inline void store_part(float *p, V v, int n) {
  float all[4];
  vst1q_f32(all, v);
  for (int i = 0; i < n; ++i) p[i] = all[i];
}
inline V set1(float x) { return vdupq_n_f32(x); }
inline V add(V a, V b) { return vaddq_f32(a, b); }
inline V sub(V a, V b) { return vsubq_f32(a, b); }
inline V mul(V a, V b) { return vmulq_f32(a, b); }
inline V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
inline V min(V a, V b) { return vminq_f32(a, b); }
inline V max(V a, V b) { return vmaxq_f32(a, b); }
inline V abs(V a) { return vabsq_f32(a); }
inline V select_positive(V test, V yes, V no) { return vbslq_f32(vcgtq_f32(test, vdupq_n_f32(0)), yes, no); }
inline V round_nearest(V a) { return vrndnq_f32(a); }
inline V pow2(V n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23)); }
inline float sum(V a) { return vaddvq_f32(a); }
inline float maximum(V a) { return vmaxvq_f32(a); }

#include "kernels/dense_simd.inc"

}  // namespace

extern const DenseKernels kDenseNeon;
const DenseKernels kDenseNeon = {kPanel, kWidth, multiply, layer_norm, attend};

}  // namespace csm
