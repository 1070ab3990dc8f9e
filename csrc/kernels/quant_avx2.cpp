// AVX2, FMA and F16C: a register holds 8 of a panel's 16 rows; products of bytes are summed in pairs to 16 bits.
#include <immintrin.h>

#include "kernels.h"

namespace csm {
namespace {

constexpr int kParts = 2;
constexpr int kQuantTile = 4;  // with 8-bit weights 8 sums of 16 bits, 2 nibbles and their input: 11 of 16 registers
constexpr int kFloatTile = 2;  // 2 parts x 2 vectors x 2 chains: 8 of 16

using Bytes = __m256i;
struct Words {
  __m256i v;
};
struct Ints {
  __m256i v;
};
struct Floats {
  __m256 v;
};

#include "vector_ops.inc"

inline Bytes load_bytes(const std::uint8_t *p) { return _mm256_load_si256(reinterpret_cast<const __m256i *>(p)); }
inline Bytes low4(Bytes b) { return _mm256_and_si256(b, _mm256_set1_epi8(15)); }
inline Bytes high4(Bytes b) { return low4(_mm256_srli_epi16(b, 4)); }
template <int left, int mask>
inline Bytes merge_bits(Bytes b, Bytes plane) {
  Bytes moved = plane;
  if constexpr (left > 0) moved = _mm256_slli_epi16(plane, left);
  if constexpr (left < 0) moved = _mm256_srli_epi16(plane, -left);
  return _mm256_or_si256(b, _mm256_and_si256(moved, _mm256_set1_epi8(mask)));
}

inline Words pairs(Bytes w, Bytes x) { return {_mm256_maddubs_epi16(w, x)}; }
inline Bytes splat_columns(const std::int8_t *q) {
  std::int32_t value;
  __builtin_memcpy(&value, q, sizeof value);
  return _mm256_set1_epi32(value);
}
inline Words add(Words a, Words b) { return {_mm256_add_epi16(a.v, b.v)}; }
template <int factor>
inline Ints widen(Words sums) {
  return {_mm256_madd_epi16(sums.v, _mm256_set1_epi16(factor))};
}

inline Ints splat(std::int32_t value) { return {_mm256_set1_epi32(value)}; }
template <int n>
inline Ints shift_left(Ints a) {
  return {_mm256_slli_epi32(a.v, n)};
}
inline Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline Ints sub(Ints a, Ints b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline Floats to_float(Ints a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline Floats zero() { return {_mm256_setzero_ps()}; }
inline Floats splat(float value) { return {_mm256_set1_ps(value)}; }
inline Floats mul(Floats a, Floats b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats fnma(Floats a, Floats b, Floats c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }

inline __m128i load_128(const std::uint8_t *p) { return _mm_load_si128(reinterpret_cast<const __m128i *>(p)); }
inline __m128i load_64(const std::uint8_t *p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)); }
inline Floats load_f16(const std::uint8_t *p) { return {_mm256_cvtph_ps(load_128(p))}; }
inline Floats load_bf16(const std::uint8_t *p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(p)), 16))};
}
inline Floats load_f32(const std::uint8_t *p) { return {_mm256_load_ps(reinterpret_cast<const float *>(p))}; }
inline Floats load_u8(const std::uint8_t *p) { return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_64(p)))}; }
inline Floats load_i8(const std::uint8_t *p) { return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_64(p)))}; }
inline void store(float *p, Floats a) { _mm256_storeu_ps(p, a.v); }

#include "sums_i16.inc"
#include "product.inc"

}  // namespace

const KernelTable kAvx2Kernels = {product_quantised, product_float, quantise,   rms_norm,
                                  silu_mul,          softmax,       dot,        add_scaled};

}  // namespace csm
