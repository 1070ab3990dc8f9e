#include "kernels/machine_kernels.h"

#include <arm_neon.h>

namespace csm {
namespace {

constexpr int kChains = 16;

// 16 products, summed by fours into 4 lanes, in one instruction.
int32_t int8(long rounds) {
  int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(-2);
  CSM_OPAQUE_NEON(a);
  CSM_OPAQUE_NEON(b);
  int32x4_t sum[kChains];
  for (int32x4_t &s : sum) s = vdupq_n_s32(0);
  for (long r = 0; r < rounds; ++r)
    for (int32x4_t &s : sum) s = vdotq_s32(s, a, b);
  int32x4_t all = sum[0];
  for (int i = 1; i < kChains; ++i) all = veorq_s32(all, sum[i]);
  return vaddvq_s32(all);
}

}  // namespace

// Reading and multiply-adds are those of the baseline: csrc/machine.cpp puts them in.
const MachineKernels kMachineNeonDotprod = {nullptr, nullptr, 0, int8, 2 * 16 * kChains};

}  // namespace csm
