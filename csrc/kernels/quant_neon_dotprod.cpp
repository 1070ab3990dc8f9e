// NEON with the dot-product extension: four products of bytes and their sum in one instruction.
#include <arm_neon.h>

#include "kernels/kernels.h"

namespace csm {
namespace {

inline int32x4_t dot_rows(int32x4_t acc, const int8x16_t *rows, int8x16_t x) {
  acc = vdotq_laneq_s32(acc, rows[0], x, 0);
  acc = vdotq_laneq_s32(acc, rows[1], x, 1);
  acc = vdotq_laneq_s32(acc, rows[2], x, 2);
  return vdotq_laneq_s32(acc, rows[3], x, 3);
}

#include "kernels/quant_neon.inc"
#include "kernels/vector_ops.inc"
#include "kernels/quantise_lanes.inc"

#include "kernels/matmul.inc"

}  // namespace

const KernelTable kNeonDotprodKernels = {matmul_quantised, matmul_float, quantise,  rms_norm,
                                         silu_mul,         softmax,      add_scaled};

}  // namespace csm
