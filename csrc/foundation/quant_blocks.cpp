#include "foundation/quant_blocks.h"

#include <cstring>

namespace csm {
namespace {

constexpr TypeInfo kTypes[] = {
    {TensorType::f32, "f32", 1, 4, false, 0},
    {TensorType::f16, "f16", 1, 2, false, 0},
    {TensorType::bf16, "bf16", 1, 2, false, 0},
    {TensorType::q8_0, "q8_0", kBlock, sizeof(BlockQ8_0), true, 128},
    {TensorType::q6_K, "q6_K", kSuperBlock, sizeof(BlockQ6_K), true, 32},
    {TensorType::q5_K, "q5_K", kSuperBlock, sizeof(BlockQ5_K), true, 0},
    {TensorType::q4_K, "q4_K", kSuperBlock, sizeof(BlockQ4_K), true, 0},
    {TensorType::q5_1, "q5_1", kBlock, sizeof(BlockQ5_1), true, 0},
    {TensorType::q5_0, "q5_0", kBlock, sizeof(BlockQ5_0), true, 16},
    {TensorType::q4_1, "q4_1", kBlock, sizeof(BlockQ4_1), true, 0},
    {TensorType::q4_0, "q4_0", kBlock, sizeof(BlockQ4_0), true, 8},
};

constexpr int kSubBlocks = kSuperBlock / kBlock;

// GGUF guarantees no alignment of a block inside a row: copy it out.
template <class Block>
Block load_block(const std::uint8_t *row, int index) {
  Block block;
  std::memcpy(&block, row + static_cast<std::size_t>(index) * sizeof(Block), sizeof(Block));
  return block;
}

void low_nibbles(const std::uint8_t *qs, std::uint8_t *q) {
  for (int i = 0; i < kBlock / 2; ++i) {
    q[i] = qs[i] & 15;
    q[i + kBlock / 2] = qs[i] >> 4;
  }
}

void add_fifth_bit(const std::uint8_t *qh, std::uint8_t *q) {
  for (int i = 0; i < kBlock; ++i) q[i] |= ((qh[i / 8] >> (i % 8)) & 1) << 4;
}

// The 6-bit scale and minimum of sub-block s: the first four are whole bytes, whose top bits complete the last four.
void k_scales(const std::uint8_t *scales, int s, UnpackedBlock &out) {
  if (s < 4) {
    out.sub_scale[0] = scales[s] & 63;
    out.sub_min = scales[s + 4] & 63;
  } else {
    out.sub_scale[0] = (scales[s + 4] & 15) | ((scales[s - 4] >> 6) << 4);
    out.sub_min = (scales[s + 4] >> 4) | ((scales[s] >> 6) << 4);
  }
  out.sub_scale[1] = out.sub_scale[0];
}

void k_nibbles(const std::uint8_t *qs, int s, std::uint8_t *q) {
  const std::uint8_t *bytes = qs + s / 2 * kBlock;
  for (int i = 0; i < kBlock; ++i) q[i] = s % 2 == 0 ? bytes[i] & 15 : bytes[i] >> 4;
}

void unpack_q6_k(const std::uint8_t *row, int index, UnpackedBlock &out) {
  const auto block = load_block<BlockQ6_K>(row, index / kSubBlocks);
  const int s = index % kSubBlocks;
  const int half = s / 4, quarter = s % 4;  // a half is 128 weights: 64 bytes of ql, 32 of qh
  const std::uint8_t *ql = block.ql + half * 64 + quarter % 2 * kBlock;
  const std::uint8_t *qh = block.qh + half * 32;
  for (int i = 0; i < kBlock; ++i) {
    const int low = quarter < 2 ? ql[i] & 15 : ql[i] >> 4;
    out.q[i] = static_cast<std::uint8_t>(low | ((qh[i] >> (2 * quarter)) & 3) << 4);
  }
  out.d = block.d;
  out.sub_scale[0] = block.scales[2 * s];
  out.sub_scale[1] = block.scales[2 * s + 1];
}

#include "foundation/float_bits.inc"

}  // namespace

const TypeInfo *type_info(TensorType type) {
  for (const TypeInfo &info : kTypes)
    if (info.type == type) return &info;
  return nullptr;
}

std::size_t row_bytes(const TypeInfo &info, std::size_t cols) {
  return cols / static_cast<std::size_t>(info.block) * static_cast<std::size_t>(info.block_bytes);
}

void unpack_block(TensorType type, const std::uint8_t *row, int index, UnpackedBlock &out) {
  out.m = 0;
  out.sub_scale[0] = out.sub_scale[1] = 1;
  out.sub_min = 0;
  switch (type) {
    case TensorType::q8_0: {
      const auto block = load_block<BlockQ8_0>(row, index);
      for (int i = 0; i < kBlock; ++i) out.q[i] = static_cast<std::uint8_t>(block.qs[i] + 128);
      out.d = block.d;
      return;
    }
    case TensorType::q4_0: {
      const auto block = load_block<BlockQ4_0>(row, index);
      low_nibbles(block.qs, out.q);
      out.d = block.d;
      return;
    }
    case TensorType::q4_1: {
      const auto block = load_block<BlockQ4_1>(row, index);
      low_nibbles(block.qs, out.q);
      out.d = block.d;
      out.m = block.m;
      return;
    }
    case TensorType::q5_0: {
      const auto block = load_block<BlockQ5_0>(row, index);
      low_nibbles(block.qs, out.q);
      add_fifth_bit(block.qh, out.q);
      out.d = block.d;
      return;
    }
    case TensorType::q5_1: {
      const auto block = load_block<BlockQ5_1>(row, index);
      low_nibbles(block.qs, out.q);
      add_fifth_bit(block.qh, out.q);
      out.d = block.d;
      out.m = block.m;
      return;
    }
    case TensorType::q4_K: {
      const auto block = load_block<BlockQ4_K>(row, index / kSubBlocks);
      k_nibbles(block.qs, index % kSubBlocks, out.q);
      k_scales(block.scales, index % kSubBlocks, out);
      out.d = block.d;
      out.m = block.dmin;
      return;
    }
    case TensorType::q5_K: {
      const auto block = load_block<BlockQ5_K>(row, index / kSubBlocks);
      const int s = index % kSubBlocks;
      k_nibbles(block.qs, s, out.q);
      for (int i = 0; i < kBlock; ++i) out.q[i] |= ((block.qh[i] >> s) & 1) << 4;
      k_scales(block.scales, s, out);
      out.d = block.d;
      out.m = block.dmin;
      return;
    }
    case TensorType::q6_K: unpack_q6_k(row, index, out); return;
    case TensorType::f32:
    case TensorType::f16:
    case TensorType::bf16: return;  // not quantised: callers never ask
  }
}

void dequantise_row(TensorType type, const std::uint8_t *row, int cols, float *out) {
  switch (type) {
    case TensorType::f32: std::memcpy(out, row, static_cast<std::size_t>(cols) * sizeof(float)); return;
    case TensorType::f16:
    case TensorType::bf16:
      for (int k = 0; k < cols; ++k) {
        std::uint16_t bits;
        std::memcpy(&bits, row + 2 * static_cast<std::size_t>(k), sizeof bits);
        out[k] = type == TensorType::f16 ? half_to_float(bits) : bfloat_to_float(bits);
      }
      return;
    default: break;
  }
  const int zero = type_info(type)->zero;
  const bool k_quant = type_info(type)->block == kSuperBlock;
  UnpackedBlock block;
  for (int index = 0; index < cols / kBlock; ++index) {
    unpack_block(type, row, index, block);
    const float d = half_to_float(block.d), m = half_to_float(block.m);
    const float offset = k_quant ? -(m * static_cast<float>(block.sub_min)) : m;
    for (int i = 0; i < kBlock; ++i) {
      const float scale = d * static_cast<float>(block.sub_scale[i / 16]);
      out[index * kBlock + i] = scale * static_cast<float>(block.q[i] - zero) + offset;
    }
  }
}

}  // namespace csm
