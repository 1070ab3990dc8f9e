#include "kernels/machine_kernels.h"

#include <immintrin.h>

namespace csm {
namespace {

constexpr int kChains = 16;

uint64_t read(const uint8_t *left, const uint8_t *right, size_t bytes) {
  __m512i even = _mm512_setzero_si512(), odd = even;
  for (size_t i = 0; i < bytes; i += 64) {
    even = _mm512_xor_si512(even, _mm512_load_si512(left + i));
    odd = _mm512_xor_si512(odd, _mm512_load_si512(right + i));
  }
  return static_cast<uint64_t>(_mm512_reduce_or_epi64(_mm512_xor_si512(even, odd)));
}

float f32(long rounds) {
  const __m512 half = _mm512_set1_ps(0.5f);
  __m512 sum[kChains];
  for (__m512 &s : sum) s = half;
  for (long r = 0; r < rounds; ++r)
    for (__m512 &s : sum) s = _mm512_fmadd_ps(s, half, half);

  __m512 all = sum[0];
  for (int i = 1; i < kChains; ++i) all = _mm512_add_ps(all, sum[i]);
  return _mm512_cvtss_f32(all);
}

// 64 products: bytes to 16-bit pairs, those to 32 bits, and the sum.
int32_t int8(long rounds) {
  __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2);
  const __m512i ones = _mm512_set1_epi16(1);
  __m512i sum[kChains];
  for (__m512i &s : sum) s = _mm512_setzero_si512();
  for (long r = 0; r < rounds; ++r)
    for (__m512i &s : sum) {
      CSM_OPAQUE_X86(a);
      s = _mm512_add_epi32(s, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), ones));
    }
  __m512i all = sum[0];
  for (int i = 1; i < kChains; ++i) all = _mm512_xor_si512(all, sum[i]);
  return _mm512_reduce_or_epi32(all);
}

}  // namespace

const MachineKernels kMachineAvx512 = {read, f32, 2 * 16 * kChains, int8, 2 * 64 * kChains};

}  // namespace csm
