#include "pack.h"

#include <algorithm>
#include <cstring>

#include "../quant_blocks.h"

namespace csm {
namespace {

constexpr int kSubBlocks = kSuperBlock / kBlock;

std::size_t round_up(std::size_t value, std::size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

int quant_bits(TensorType type) {
  switch (type) {
    case TensorType::q8_0: return 8;
    case TensorType::q6_K: return 6;
    case TensorType::q5_0:
    case TensorType::q5_1:
    case TensorType::q5_K: return 5;
    default: return 4;
  }
}

std::size_t quants_bytes(TensorType type) { return static_cast<std::size_t>(quant_bits(type)) * kBlock * kGroup / 8; }

std::size_t scales_bytes(TensorType type, int cols) {
  const auto blocks = static_cast<std::size_t>(cols / kBlock);
  const std::size_t halves = sizeof(f16_bits) * kGroup;  // one f16 for each row
  switch (type) {
    case TensorType::q4_1:
    case TensorType::q5_1: return blocks * 2 * halves;
    case TensorType::q4_K:
    case TensorType::q5_K: return blocks / kSubBlocks * (2 * halves) + blocks * 2 * kGroup;
    case TensorType::q6_K: return blocks / kSubBlocks * halves + blocks * 2 * kGroup;
    default: return blocks * halves;
  }
}

void pack_quants(const UnpackedBlock &block, int bits, int row, std::uint8_t *lines) {
  for (int k = 0; k < kBlock; ++k) {
    const int half = k / 16, j = k % 16 / 4;
    const int byte = 4 * row + k % 4;
    if (bits == 8) {
      lines[kLine * (k / 4) + byte] = block.q[k];
      continue;
    }
    lines[kLine * j + byte] |= static_cast<std::uint8_t>((block.q[k] & 15) << (4 * half));
    const int high = block.q[k] >> 4;
    if (bits == 5) lines[kLine * 4 + byte] |= static_cast<std::uint8_t>(high << (k / 4));
    if (bits == 6) lines[kLine * (4 + half) + byte] |= static_cast<std::uint8_t>(high << (2 * j));
  }
}

void put_f16(std::uint8_t *out, int row, f16_bits value) { std::memcpy(out + 2 * row, &value, sizeof value); }

void pack_scales(TensorType type, const UnpackedBlock &block, int index, int row, std::uint8_t *scales) {
  const int halves = 2 * kGroup;
  switch (type) {
    case TensorType::q4_1:
    case TensorType::q5_1:
      put_f16(scales + 2 * halves * index, row, block.d);
      put_f16(scales + 2 * halves * index + halves, row, block.m);
      return;
    case TensorType::q4_K:
    case TensorType::q5_K: {
      std::uint8_t *super = scales + index / kSubBlocks * (2 * halves + kSubBlocks * 2 * kGroup);
      put_f16(super, row, block.d);
      put_f16(super + halves, row, block.m);
      std::uint8_t *sub = super + 2 * halves + index % kSubBlocks * 2 * kGroup;
      sub[row] = static_cast<std::uint8_t>(block.sub_scale[0]);
      sub[kGroup + row] = block.sub_min;
      return;
    }
    case TensorType::q6_K: {
      std::uint8_t *super = scales + index / kSubBlocks * (halves + kSubBlocks * 2 * kGroup);
      put_f16(super, row, block.d);
      std::uint8_t *sub = super + halves + index % kSubBlocks * 2 * kGroup;
      sub[row] = static_cast<std::uint8_t>(block.sub_scale[0]);
      sub[kGroup + row] = static_cast<std::uint8_t>(block.sub_scale[1]);
      return;
    }
    default: put_f16(scales + halves * index, row, block.d);
  }
}

void pack_floats(const TypeInfo &info, const std::uint8_t *row_data, int cols, int row, std::uint8_t *panel) {
  const auto size = static_cast<std::size_t>(info.block_bytes);
  for (int k = 0; k < cols; ++k)
    std::memcpy(panel + (static_cast<std::size_t>(k) * kGroup + static_cast<std::size_t>(row)) * size,
                row_data + static_cast<std::size_t>(k) * size, size);
}

}  // namespace

std::size_t panel_bytes(TensorType type, int cols) {
  const TypeInfo &info = *type_info(type);
  if (!info.quantised)
    return round_up(static_cast<std::size_t>(cols) * kGroup * static_cast<std::size_t>(info.block_bytes), kLine);
  return static_cast<std::size_t>(cols / kBlock) * quants_bytes(type) + round_up(scales_bytes(type, cols), kLine);
}

void pack_panel(TensorType type, const std::uint8_t *tensor, int rows, int cols, int group, std::uint8_t *panel) {
  const TypeInfo &info = *type_info(type);
  const std::size_t stride = row_bytes(info, static_cast<std::size_t>(cols));
  std::memset(panel, 0, panel_bytes(type, cols));
  const int blocks = cols / kBlock;
  std::uint8_t *scales = panel + static_cast<std::size_t>(blocks) * quants_bytes(type);
  for (int row = 0; row < kGroup && group * kGroup + row < rows; ++row) {
    const std::uint8_t *source = tensor + static_cast<std::size_t>(group * kGroup + row) * stride;
    if (!info.quantised) {
      pack_floats(info, source, cols, row, panel);
      continue;
    }
    UnpackedBlock block;
    for (int index = 0; index < blocks; ++index) {
      unpack_block(type, source, index, block);
      pack_quants(block, quant_bits(type), row, panel + static_cast<std::size_t>(index) * quants_bytes(type));
      pack_scales(type, block, index, row, scales);
    }
  }
}

}  // namespace csm
