// AArch64 baseline NEON: products of bytes widen to 16 bits and are added in pairs.
#include <arm_neon.h>

#include "kernels/kernels.h"

namespace csm {
namespace {

// Sums to 16 bits hold two products: 2 * 128 * 127 = 32512.
inline int32x4_t dot_rows(int32x4_t acc, const int8x16_t *rows, int8x16_t x) {
  const int32x4_t columns = vreinterpretq_s32_s8(x);
  const int8x16_t q[4] = {
      vreinterpretq_s8_s32(vdupq_laneq_s32(columns, 0)), vreinterpretq_s8_s32(vdupq_laneq_s32(columns, 1)),
      vreinterpretq_s8_s32(vdupq_laneq_s32(columns, 2)), vreinterpretq_s8_s32(vdupq_laneq_s32(columns, 3))};
  for (int j = 0; j < 4; ++j) {
    const int16x8_t low = vmull_s8(vget_low_s8(rows[j]), vget_low_s8(q[j]));
    const int16x8_t high = vmull_s8(vget_high_s8(rows[j]), vget_high_s8(q[j]));
    acc = vpadalq_s16(acc, vpaddq_s16(low, high));
  }
  return acc;
}

#include "kernels/quant_neon.inc"
#include "kernels/vector_ops.inc"
#include "kernels/quantise_lanes.inc"

#include "kernels/matmul.inc"

}  // namespace

const KernelTable kNeonKernels = {matmul_quantised, matmul_float, quantise, rms_norm, silu_mul, softmax, add_scaled};

}  // namespace csm
