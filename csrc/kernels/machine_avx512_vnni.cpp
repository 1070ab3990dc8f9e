#include "kernels/machine_kernels.h"

#include <immintrin.h>

namespace csm {
namespace {

constexpr int kChains = 16;

// 64 products of unsigned and signed bytes, summed by fours into 16 lanes, in one instruction.
int32_t int8(long rounds) {
  __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2);
  CSM_OPAQUE_X86(a);
  CSM_OPAQUE_X86(b);
  __m512i sum[kChains];
  for (__m512i &s : sum) s = _mm512_setzero_si512();
  for (long r = 0; r < rounds; ++r)
    for (__m512i &s : sum) s = _mm512_dpbusd_epi32(s, a, b);
  __m512i all = sum[0];
  for (int i = 1; i < kChains; ++i) all = _mm512_xor_si512(all, sum[i]);
  return _mm512_reduce_or_epi32(all);
}

}  // namespace

// Reading and multiply-adds are those of AVX-512 without VNNI: csrc/machine.cpp puts them in.
const MachineKernels kMachineAvx512Vnni = {nullptr, nullptr, 0, int8, 2 * 64 * kChains};

}  // namespace csm
