// Compares every instruction set that this CPU has with the scalar kernels, without Python: for cross-compiled builds
// under an emulator (arm64.sh). Inputs are small integers for which every float operation is exact, so results must be
// equal.
#include <cstdio>
#include <cstring>
#include <vector>

#include "foundation/isa.h"
#include "foundation/quant_blocks.h"
#include "kernels/kernels.h"
#include "kernels/pack.h"

using namespace csm;

namespace {

constexpr int kRows = 35, kCols = 512, kVectors = 13;
constexpr std::uint16_t kOneF16 = 0x3c00;

std::uint32_t state = 1;
std::uint32_t next_random() { return state = state * 1664525u + 1013904223u; }

// Random bits in every field but the f16 ones, which are 1, and q6_K's scales, which stay within -64 .. 63.
std::vector<std::uint8_t> random_tensor(const TypeInfo &info) {
  std::vector<std::uint8_t> data(kRows * row_bytes(info, kCols));
  for (std::uint8_t &byte : data) byte = static_cast<std::uint8_t>(next_random() >> 24);
  for (std::size_t block = 0; block < data.size(); block += static_cast<std::size_t>(info.block_bytes)) {
    std::uint8_t *p = data.data() + block;
    switch (info.type) {
      case TensorType::f32: {
        const float value = static_cast<float>(static_cast<int>(next_random() >> 28) - 8);
        std::memcpy(p, &value, sizeof value);
        break;
      }
      case TensorType::f16:
        std::memcpy(p, &kOneF16, 2), p[1] ^= static_cast<std::uint8_t>(next_random() >> 24 & 0x80);
        break;
      case TensorType::bf16:
        p[0] = 0x80, p[1] = static_cast<std::uint8_t>(0x3f | (next_random() >> 24 & 0x80));
        break;  // +-1
      case TensorType::q6_K:
        for (int i = 192; i < 208; ++i) p[i] = static_cast<std::uint8_t>(static_cast<int>(next_random() >> 25) - 64);
        std::memcpy(p + 208, &kOneF16, 2);
        break;
      case TensorType::q4_1:
      case TensorType::q5_1:
      case TensorType::q4_K:
      case TensorType::q5_K: std::memcpy(p + 2, &kOneF16, 2); [[fallthrough]];
      default: std::memcpy(p, &kOneF16, 2);
    }
  }
  return data;
}

// One block of each vector at full scale, so that sums after scaling stay below 2^24; the rest 0.
std::vector<float> activations() {
  std::vector<float> x(kVectors * kCols, 0.0f);
  for (int b = 0; b < kVectors; ++b)
    for (int i = 0; i < kBlock; ++i)
      x[static_cast<std::size_t>(b * kCols + b % (kCols / kBlock) * kBlock + i)] =
          next_random() >> 31 ? 127.0f : -127.0f;
  return x;
}

std::vector<float> product(const KernelTable &table, const PanelMatrix &matrix, const std::vector<float> &x) {
  std::vector<float> out(static_cast<std::size_t>(kVectors * matrix.padded_rows()));
  if (!type_info(matrix.type)->quantised) {
    table.matmul_float(matrix, 0, matrix.groups(), x.data(), kCols, kVectors, out.data(), matrix.padded_rows(),
                       matrix.panels);
    return out;
  }
  std::vector<XBlock> blocks(kCols / kBlock * kVectors);
  for (int b = 0; b < kVectors; ++b)
    table.quantise(&x[static_cast<std::size_t>(b * kCols)], kCols / kBlock, &blocks[static_cast<std::size_t>(b)],
                   kVectors);
  table.matmul_quantised(matrix, 0, matrix.groups(), blocks.data(), kVectors, out.data(), matrix.padded_rows(),
                         matrix.panels);
  return out;
}

}  // namespace

int main() {
  int failures = 0;
  for (const TensorType type :
       {TensorType::f32, TensorType::f16, TensorType::bf16, TensorType::q8_0, TensorType::q6_K, TensorType::q5_K,
        TensorType::q4_K, TensorType::q5_1, TensorType::q5_0, TensorType::q4_1, TensorType::q4_0}) {
    const TypeInfo &info = *type_info(type);
    const std::vector<std::uint8_t> tensor = random_tensor(info);
    const std::size_t bytes = panel_bytes(type, kCols);
    const int groups = (kRows + kGroup - 1) / kGroup;
    std::vector<std::uint8_t> memory(bytes * static_cast<std::size_t>(groups) + kLine);
    std::uint8_t *panels = memory.data() + (kLine - reinterpret_cast<std::uintptr_t>(memory.data()) % kLine);
    for (int group = 0; group < groups; ++group)
      pack_panel(type, tensor.data(), kRows, kCols, group, panels + bytes * static_cast<std::size_t>(group));
    const PanelMatrix matrix{type, kRows, kCols, bytes, panels};
    const std::vector<float> x = activations(), expected = product(kernels(Isa::scalar), matrix, x);
    double largest = 0;
    for (const float value : expected) largest = value > largest ? value : largest;
    for (const Isa isa : available_isas()) {
      const bool equal = product(kernels(isa), matrix, x) == expected;
      std::printf("%-5s %-13s %s (largest %g)\n", info.name, isa_name(isa), equal ? "equal" : "DIFFERENT", largest);
      failures += !equal || !(largest > 0);
    }
  }
  return failures != 0;
}
