// AVX2, FMA and F16C: a panel's 16 rows are two registers; products of bytes are summed in pairs to 16 bits.
#include <immintrin.h>

#include "kernels.h"

namespace csm {
namespace {

constexpr int kQuantTile = 4;
constexpr int kFloatTile = 2;  // 2 vectors x 2 chains x 2 registers: 8 of 16

struct Bytes {
  __m256i lo, hi;
};
struct Ints {
  __m256i lo, hi;
};
struct Floats {
  __m256 lo, hi;
};

#include "vector_ops.inc"

inline __m256i load_256(const void *p) { return _mm256_load_si256(static_cast<const __m256i *>(p)); }
inline Bytes load_bytes(const std::uint8_t *p) { return {load_256(p), load_256(p + 32)}; }
inline __m256i low_nibbles(__m256i b) { return _mm256_and_si256(b, _mm256_set1_epi8(15)); }
inline __m256i high_nibbles(__m256i b) { return low_nibbles(_mm256_srli_epi16(b, 4)); }
inline Bytes low4(Bytes b) { return {low_nibbles(b.lo), low_nibbles(b.hi)}; }
inline Bytes high4(Bytes b) { return {high_nibbles(b.lo), high_nibbles(b.hi)}; }
template <int left, int mask>
inline __m256i merge_half(__m256i b, __m256i plane) {
  if constexpr (left > 0) plane = _mm256_slli_epi16(plane, left);
  if constexpr (left < 0) plane = _mm256_srli_epi16(plane, -left);
  return _mm256_or_si256(b, _mm256_and_si256(plane, _mm256_set1_epi8(mask)));
}
template <int left, int mask>
inline Bytes merge_bits(Bytes b, Bytes plane) {
  return {merge_half<left, mask>(b.lo, plane.lo), merge_half<left, mask>(b.hi, plane.hi)};
}

inline __m256i splat_i32(const std::int8_t *q) {
  std::int32_t value;
  __builtin_memcpy(&value, q, sizeof value);
  return _mm256_set1_epi32(value);
}
inline __m256i widen(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

// Sums of 16 bits: see quant_avx512.cpp for their bounds.
template <int bits>
inline __m256i dot_half(__m256i w0, __m256i w1, __m256i w2, __m256i w3, const __m256i *x) {
  if constexpr (bits == 8) {
    const __m256i low = dot_half<4>(low_nibbles(w0), low_nibbles(w1), low_nibbles(w2), low_nibbles(w3), x);
    const __m256i high = dot_half<4>(high_nibbles(w0), high_nibbles(w1), high_nibbles(w2), high_nibbles(w3), x);
    return _mm256_add_epi32(low, _mm256_slli_epi32(high, 4));
  } else {
    const __m256i a = _mm256_add_epi16(_mm256_maddubs_epi16(w0, x[0]), _mm256_maddubs_epi16(w1, x[1]));
    const __m256i b = _mm256_add_epi16(_mm256_maddubs_epi16(w2, x[2]), _mm256_maddubs_epi16(w3, x[3]));
    if constexpr (bits == 6) return _mm256_add_epi32(widen(a), widen(b));
    else return widen(_mm256_add_epi16(a, b));
  }
}
template <int bits>
inline void dot16(Ints &acc, const Bytes *w, const std::int8_t *q) {
  const __m256i x[4] = {splat_i32(q), splat_i32(q + 4), splat_i32(q + 8), splat_i32(q + 12)};
  acc.lo = _mm256_add_epi32(acc.lo, dot_half<bits>(w[0].lo, w[1].lo, w[2].lo, w[3].lo, x));
  acc.hi = _mm256_add_epi32(acc.hi, dot_half<bits>(w[0].hi, w[1].hi, w[2].hi, w[3].hi, x));
}

inline Ints splat(std::int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
template <int n>
inline Ints shift_left(Ints a) {
  return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)};
}
inline Ints sub(Ints a, Ints b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
inline Floats to_float(Ints a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats splat(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Floats mul(Floats a, Floats b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Floats fma(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Floats fnma(Floats a, Floats b, Floats c) {
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}

inline __m128i load_128(const void *p) { return _mm_load_si128(static_cast<const __m128i *>(p)); }
inline __m128i load_64(const void *p) { return _mm_loadl_epi64(static_cast<const __m128i *>(p)); }
inline __m256 bf16_half(const std::uint8_t *p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(p)), 16));
}
inline Floats load_f16(const std::uint8_t *p) { return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 16))}; }
inline Floats load_bf16(const std::uint8_t *p) { return {bf16_half(p), bf16_half(p + 16)}; }
inline Floats load_f32(const std::uint8_t *p) {
  const auto *values = reinterpret_cast<const float *>(p);
  return {_mm256_load_ps(values), _mm256_load_ps(values + 8)};
}
inline Floats load_u8(const std::uint8_t *p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_64(p))), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_64(p + 8)))};
}
inline Floats load_i8(const std::uint8_t *p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_64(p))), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_64(p + 8)))};
}
inline void store(float *p, Floats a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}

#include "product.inc"

}  // namespace

const KernelTable kAvx2Kernels = {product_quantised, product_float, quantise,   rms_norm,
                                  silu_mul,          softmax,       dot,        add_scaled};

}  // namespace csm
