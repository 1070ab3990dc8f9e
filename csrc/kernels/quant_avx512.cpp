// AVX-512 without VNNI: products of bytes are summed in pairs to 16 bits (vpmaddubsw), then to 32 bits.
#include <immintrin.h>

#include "kernels.h"

namespace csm {
namespace {

#include "quant_avx512.inc"
#include "vector_ops.inc"

inline __m512i pairs(Bytes w, const std::int8_t *q) { return _mm512_maddubs_epi16(w, _mm512_set1_epi32(load_i32(q))); }
inline __m512i widen(__m512i sums) { return _mm512_madd_epi16(sums, _mm512_set1_epi16(1)); }

// |q| <= 127, so a pair of b-bit weights gives at most 2 (2^b - 1) 127: for 5 bits four of them fit 16 bits (31496),
// for 6 bits two (32004); 8-bit weights are taken as two nibbles.
template <int bits>
inline void dot16(Ints &acc, const Bytes *w, const std::int8_t *q) {
  if constexpr (bits == 8) {
    const Bytes low[4] = {low4(w[0]), low4(w[1]), low4(w[2]), low4(w[3])};
    const Bytes high[4] = {high4(w[0]), high4(w[1]), high4(w[2]), high4(w[3])};
    Ints sixteenths = splat(0);
    dot16<4>(acc, low, q);
    dot16<4>(sixteenths, high, q);
    acc.v = _mm512_add_epi32(acc.v, shift_left<4>(sixteenths).v);
  } else {
    const __m512i a = _mm512_add_epi16(pairs(w[0], q), pairs(w[1], q + 4));
    const __m512i b = _mm512_add_epi16(pairs(w[2], q + 8), pairs(w[3], q + 12));
    if constexpr (bits == 6) acc.v = _mm512_add_epi32(acc.v, _mm512_add_epi32(widen(a), widen(b)));
    else acc.v = _mm512_add_epi32(acc.v, widen(_mm512_add_epi16(a, b)));
  }
}

#include "product.inc"

}  // namespace

const KernelTable kAvx512Kernels = {product_quantised, product_float, quantise,   rms_norm,
                                    silu_mul,          softmax,       dot,        add_scaled};

}  // namespace csm
