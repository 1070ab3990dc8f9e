#include "kernels/machine_kernels.h"

#include <immintrin.h>

namespace csm {
namespace {

constexpr int kChains = 12;  // two a cycle, five cycles each

#if defined(__AVXVNNI__)
inline __m256i add_dot(__m256i sum, __m256i a, __m256i b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
#else  // AVX-512's encoding of the same instruction, see CSM_HYBRID_AVX_VNNI_AS_EVEX
inline __m256i add_dot(__m256i sum, __m256i a, __m256i b) { return _mm256_dpbusd_epi32(sum, a, b); }
#endif

// 32 products of unsigned and signed bytes, summed by fours into 8 lanes, in one instruction.
int32_t int8(long rounds) {
  __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2);
  CSM_OPAQUE_X86(a);
  CSM_OPAQUE_X86(b);
  __m256i sum[kChains];
  for (__m256i &s : sum) s = _mm256_setzero_si256();
  for (long r = 0; r < rounds; ++r)
    for (__m256i &s : sum) s = add_dot(s, a, b);
  __m256i all = sum[0];
  for (int i = 1; i < kChains; ++i) all = _mm256_xor_si256(all, sum[i]);
  return _mm256_extract_epi32(all, 0);
}

}  // namespace

// Reading and multiply-adds are those of AVX2: csrc/machine.cpp puts them in.
const MachineKernels kMachineAvx2Vnni = {nullptr, nullptr, 0, int8, 2 * 32 * kChains};

}  // namespace csm
