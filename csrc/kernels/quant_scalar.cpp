// The reference and the fallback: the architecture's baseline, no intrinsics.
#include "kernels/kernels.h"

namespace csm {
namespace {

constexpr int kParts = 1;
constexpr int kDotLines = 4;
constexpr int kQuantTile = 1;
constexpr int kFloatTile = 1;

struct Bytes {
  std::uint8_t v[64];
};
struct Ints {
  std::int32_t v[16];
};
struct Floats {
  float v[16];
};

#include "kernels/vector_ops.inc"
#include "kernels/quantise_lanes.inc"

inline Bytes load_bytes(const std::uint8_t *p) {
  Bytes b;
  __builtin_memcpy(b.v, p, sizeof b.v);
  return b;
}
inline Bytes low4(Bytes b) {
  for (std::uint8_t &v : b.v) v = v & 15;
  return b;
}
inline Bytes high4(Bytes b) {
  for (std::uint8_t &v : b.v) v = v >> 4;
  return b;
}
template <int left, int mask>
inline Bytes merge_bits(Bytes b, const Bytes &plane) {
  for (int i = 0; i < 64; ++i) {
    const int moved = left >= 0 ? plane.v[i] << (left >= 0 ? left : 0) : plane.v[i] >> (left < 0 ? -left : 0);
    b.v[i] = static_cast<std::uint8_t>(b.v[i] | (moved & mask));
  }
  return b;
}
#include "kernels/sums_i32.inc"
template <int bits, int j>
inline void add_dots(Ints &sum, const Bytes *w, const std::int8_t *q) {
  for (int l = 0; l < kDotLines; ++l)
    for (int r = 0; r < 16; ++r)
      for (int i = 0; i < 4; ++i) sum.v[r] += w[l].v[4 * r + i] * q[4 * l + i];
}

template <class F>
inline Floats each(F value) {
  Floats out;
  for (int r = 0; r < 16; ++r) out.v[r] = value(r);
  return out;
}
inline Ints splat(std::int32_t value) {
  Ints out;
  for (std::int32_t &v : out.v) v = value;
  return out;
}
template <int n>
inline Ints shift_left(Ints a) {
  for (std::int32_t &v : a.v) v *= 1 << n;
  return a;
}
inline Ints sub(Ints a, const Ints &b) {
  for (int r = 0; r < 16; ++r) a.v[r] -= b.v[r];
  return a;
}
inline Floats to_float(const Ints &a) {
  return each([&](int r) { return static_cast<float>(a.v[r]); });
}
inline Floats splat(float value) {
  return each([&](int) { return value; });
}
inline Floats zero() { return splat(0.0f); }
inline Floats mul(const Floats &a, const Floats &b) {
  return each([&](int r) { return a.v[r] * b.v[r]; });
}
inline Floats fma(const Floats &a, const Floats &b, const Floats &c) {
  return each([&](int r) { return a.v[r] * b.v[r] + c.v[r]; });
}
inline Floats fnma(const Floats &a, const Floats &b, const Floats &c) {
  return each([&](int r) { return c.v[r] - a.v[r] * b.v[r]; });
}

inline std::uint16_t load_u16(const std::uint8_t *p) {
  std::uint16_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return bits;
}
inline Floats load_f16(const std::uint8_t *p) {
  return each([&](int r) { return half_to_float(load_u16(p + 2 * r)); });
}
inline Floats load_bf16(const std::uint8_t *p) {
  return each([&](int r) { return bfloat_to_float(load_u16(p + 2 * r)); });
}
inline Floats load_f32(const std::uint8_t *p) {
  Floats out;
  __builtin_memcpy(out.v, p, sizeof out.v);
  return out;
}
inline Floats load_u8(const std::uint8_t *p) {
  return each([&](int r) { return static_cast<float>(p[r]); });
}
inline Floats load_i8(const std::uint8_t *p) {
  return each([&](int r) { return static_cast<float>(static_cast<std::int8_t>(p[r])); });
}
inline void store(float *p, const Floats &a) { __builtin_memcpy(p, a.v, sizeof a.v); }

#include "kernels/matmul.inc"

}  // namespace

const KernelTable kScalarKernels = {matmul_quantised, matmul_float, quantise, rms_norm, silu_mul, softmax, add_scaled};

}  // namespace csm
