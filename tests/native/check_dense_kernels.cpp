// Compares the codec's float kernels of every instruction set that this CPU has with the scalar ones, without Python:
// see arm64.sh. Products take small integers, for which every float operation is exact, so they must be equal; what
// goes through an exponential or a square root may differ by the approximations' errors.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "foundation/isa.h"
#include "kernels/dense.h"
#include "mimi/matrix.h"

using namespace csm;

namespace {

constexpr int kRows = 13;
constexpr float kNear = 2e-6f;  // relative to 1 + |value|: exp, expm1 and erf are good to a few units in the last place

std::uint32_t state = 1;
std::uint32_t next_random() { return state = state * 1664525u + 1013904223u; }
std::vector<float> integers(int n) {
  std::vector<float> out(static_cast<std::size_t>(n));
  for (float &value : out) value = static_cast<float>(static_cast<int>(next_random() >> 28) - 8);
  return out;
}

// Integers of -8 .. 7 in half precision.
std::uint16_t half(float value) {
  if (value == 0) return 0;
  int exponent = 0;
  const float fraction = std::frexp(std::fabs(value), &exponent);  // in [0.5, 1)
  const int sign = value < 0 ? 0x8000 : 0;
  return static_cast<std::uint16_t>(sign | (exponent + 14) << 10 | static_cast<int>((2 * fraction - 1) * 1024));
}

double worst(const std::vector<float> &got, const std::vector<float> &expected) {
  double out = 0;
  for (std::size_t i = 0; i < got.size(); ++i)
    out = std::max(out, std::fabs(double{got[i]} - expected[i]) / (1 + std::fabs(double{expected[i]})));
  return out;
}

struct Outputs {
  std::vector<float> y, active;
};

Outputs multiply(const DenseKernels &kernels, const std::vector<float> &w, int n, int k, bool in_half,
                 const std::vector<float> &x, const std::vector<float> &bias, const std::vector<float> &skip,
                 Activation activation) {
  std::vector<std::uint16_t> halves(w.size());
  std::transform(w.begin(), w.end(), halves.begin(), half);
  const mimi::Layout layout = mimi::row_major(n, k);
  const mimi::Matrix matrix = in_half ? mimi::pack(halves.data(), layout, bias.data(), kernels)
                                      : mimi::pack(w.data(), layout, bias.data(), kernels);
  const PackedMatrix packed = matrix.view();
  const auto size = static_cast<std::size_t>(kRows * n);
  Outputs out{std::vector<float>(size), std::vector<float>(size)};
  DenseMatMul product{};
  product.w = &packed;
  product.x = {x.data(), kRows, k, 0};
  product.y = {out.y.data(), kRows, n, 0};
  product.activation = activation;
  if (n > 1) {
    product.skip = {skip.data(), kRows, n, 0};
    product.active = {out.active.data(), kRows, n, 0};
  }
  for (int panel = 0; panel < dense_panels(kernels, n); ++panel) {
    kernels.multiply(product, panel, 0, 5);
    kernels.multiply(product, panel, 5, kRows);
  }
  return out;
}

int failures = 0;
void tell(Isa isa, const char *what, double error, double allowed) {
  const bool good = error <= allowed;
  failures += !good;
  std::printf("%-13s %-22s error %.2g%s\n", isa_name(isa), what, error, good ? "" : " TOO LARGE");
}

void check_matmul(Isa isa) {
  double exact = 0, near = 0;
  for (const bool in_half : {false, true})
    for (const auto &[n, k] : {std::pair{1, 7}, {4, 3}, {16, 32}, {33, 20}, {70, 48}, {128, 5}})
      for (const Activation activation : {Activation::none, Activation::elu, Activation::gelu}) {
        if (n == 1 && in_half) continue;
        const std::vector<float> w = integers(n * k), x = integers(kRows * k);
        const std::vector<float> bias = integers(n), skip = integers(kRows * n);
        const Outputs expected = multiply(kDenseScalar, w, n, k, in_half, x, bias, skip, activation);
        const Outputs got = multiply(dense_kernels(isa), w, n, k, in_half, x, bias, skip, activation);
        exact = std::max(exact, worst(got.y, expected.y));
        near = std::max(near, worst(got.active, expected.active));
      }
  tell(isa, "products", exact, 0);
  tell(isa, "their activations", near, kNear);
}

void check_attention(Isa isa) {
  constexpr int kDim = 20, kPositions = 37, kStride = 48, kValueStride = 32;
  const std::vector<float> q = integers(kDim), keys = integers(kDim * kStride);
  std::vector<float> values = integers(kPositions * kValueStride);
  for (int s = 0; s < kPositions; ++s) std::fill_n(values.begin() + s * kValueStride + kDim, kValueStride - kDim, 0.0f);
  const auto attend = [&](const DenseKernels &kernels) {
    std::vector<float> scores(kStride), out(kValueStride);
    kernels.attend({q.data(), keys.data(), values.data(), scores.data(), out.data(), kDim, kPositions, kStride,
                    kValueStride, 0.05f});
    return out;
  };
  tell(isa, "attention", worst(attend(dense_kernels(isa)), attend(kDenseScalar)), kPositions * kNear);
}

void check_norm(Isa isa) {
  double error = 0;
  for (const int n : {1, 3, 16, 37, 512}) {
    const std::vector<float> x = integers(n), gamma = integers(n), beta = integers(n);
    std::vector<float> got(x.size()), expected(x.size());
    dense_kernels(isa).layer_norm(x.data(), gamma.data(), beta.data(), 1e-5f, n, got.data());
    kDenseScalar.layer_norm(x.data(), gamma.data(), beta.data(), 1e-5f, n, expected.data());
    error = std::max(error, worst(got, expected));
  }
  tell(isa, "layer norm", error, 512 * 6e-8 * 8);  // sums of 512 in another order, then times gamma
}

}  // namespace

int main() {
  for (const Isa isa : available_isas()) {
    check_matmul(isa);
    check_attention(isa);
    check_norm(isa);
  }
  return failures != 0;
}
