#include "kernels/machine_kernels.h"

#include <immintrin.h>

namespace csm {
namespace {

constexpr int kChains = 10;  // two multiply-adds a cycle, four or five cycles each

inline __m256i load(const uint8_t *p) { return _mm256_load_si256(reinterpret_cast<const __m256i *>(p)); }

uint64_t read(const uint8_t *left, const uint8_t *right, size_t bytes) {
  __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  for (size_t i = 0; i < bytes; i += 64) {
    sum[0] = _mm256_xor_si256(sum[0], load(left + i));
    sum[1] = _mm256_xor_si256(sum[1], load(left + i + 32));
    sum[2] = _mm256_xor_si256(sum[2], load(right + i));
    sum[3] = _mm256_xor_si256(sum[3], load(right + i + 32));
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0) ^ _mm256_extract_epi64(all, 1) ^
                               _mm256_extract_epi64(all, 2) ^ _mm256_extract_epi64(all, 3));
}

float f32(long rounds) {
  const __m256 half = _mm256_set1_ps(0.5f);
  __m256 sum[kChains];
  for (__m256 &s : sum) s = half;
  for (long r = 0; r < rounds; ++r)
    for (__m256 &s : sum) s = _mm256_fmadd_ps(s, half, half);

  __m256 all = sum[0];
  for (int i = 1; i < kChains; ++i) all = _mm256_add_ps(all, sum[i]);
  return _mm256_cvtss_f32(all);
}

// 32 products: bytes to 16-bit pairs, those to 32 bits, and the sum.
int32_t int8(long rounds) {
  __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum[kChains];
  for (__m256i &s : sum) s = _mm256_setzero_si256();
  for (long r = 0; r < rounds; ++r)
    for (__m256i &s : sum) {
      CSM_OPAQUE_X86(a);
      s = _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
    }
  __m256i all = sum[0];
  for (int i = 1; i < kChains; ++i) all = _mm256_xor_si256(all, sum[i]);
  return _mm256_extract_epi32(all, 0);
}

}  // namespace

const MachineKernels kMachineAvx2 = {read, f32, 2 * 8 * kChains, int8, 2 * 32 * kChains};

}  // namespace csm
