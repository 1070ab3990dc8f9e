#include "kernels/machine_kernels.h"

#include <arm_neon.h>

namespace csm {
namespace {

constexpr int kChains = 16;

uint64_t read(const uint8_t *left, const uint8_t *right, size_t bytes) {
  uint8x16_t sum[4] = {vdupq_n_u8(0), vdupq_n_u8(0), vdupq_n_u8(0), vdupq_n_u8(0)};
  for (size_t i = 0; i < bytes; i += 64)
    for (int j = 0; j < 4; ++j) {
      sum[j] = veorq_u8(sum[j], vld1q_u8(left + i + 16 * j));
      sum[j] = veorq_u8(sum[j], vld1q_u8(right + i + 16 * j));
    }
  const uint8x16_t all = veorq_u8(veorq_u8(sum[0], sum[1]), veorq_u8(sum[2], sum[3]));
  const uint64x2_t pair = vreinterpretq_u64_u8(all);
  return vgetq_lane_u64(pair, 0) ^ vgetq_lane_u64(pair, 1);
}

float f32(long rounds) {
  const float32x4_t half = vdupq_n_f32(0.5f);
  float32x4_t sum[kChains];
  for (float32x4_t &s : sum) s = half;
  for (long r = 0; r < rounds; ++r)
    for (float32x4_t &s : sum) s = vfmaq_f32(half, s, half);

  float32x4_t all = sum[0];
  for (int i = 1; i < kChains; ++i) all = vaddq_f32(all, sum[i]);
  return vaddvq_f32(all);
}

// 16 products: two halves widened to 16 bits, added in pairs to 32.
int32_t int8(long rounds) {
  int8x16_t a = vdupq_n_s8(3);
  const int8x16_t b = vdupq_n_s8(-2);
  int32x4_t sum[kChains];
  for (int32x4_t &s : sum) s = vdupq_n_s32(0);
  for (long r = 0; r < rounds; ++r)
#pragma GCC unroll 16  // clang would leave the sums in memory
    for (int32x4_t &s : sum) {
      CSM_OPAQUE_NEON(a);
      const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
      s = vpadalq_s16(s, vmlal_s8(low, vget_high_s8(a), vget_high_s8(b)));
    }
  int32x4_t all = sum[0];
  for (int i = 1; i < kChains; ++i) all = veorq_s32(all, sum[i]);
  return vaddvq_s32(all);
}

}  // namespace

const MachineKernels kMachineNeon = {read, f32, 2 * 4 * kChains, int8, 2 * 16 * kChains};

}  // namespace csm
