#include "kernels/pack.h"

#include <cstring>
#include <utility>

#include "foundation/quant_blocks.h"

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

constexpr int kHalves = 2 * kGroup;  // bytes of one f16 for each row

// Blocks that share a line of scales.
int blocks_in_chunk(TensorType type) { return type == TensorType::q4_1 || type == TensorType::q5_1 ? 1 : 2; }

bool has_superblocks(TensorType type) { return type_info(type)->block == kSuperBlock; }

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

// `index` is the block's place in its chunk; `super` is the line of its superblock, for types that have those.
void pack_scales(TensorType type, const UnpackedBlock &block, int index, int row, std::uint8_t *super,
                 std::uint8_t *scales) {
  switch (type) {
    case TensorType::q4_1:
    case TensorType::q5_1:
      put_f16(scales, row, block.d);
      put_f16(scales + kHalves, row, block.m);
      return;
    case TensorType::q4_K:
    case TensorType::q5_K: {
      put_f16(super, row, block.d);
      put_f16(super + kHalves, row, block.m);
      std::uint8_t *sub = scales + index * 2 * kGroup;
      sub[row] = static_cast<std::uint8_t>(block.sub_scale[0]);
      sub[kGroup + row] = block.sub_min;
      return;
    }
    case TensorType::q6_K: {
      put_f16(super, row, block.d);
      std::uint8_t *sub = scales + index * 2 * kGroup;
      sub[row] = static_cast<std::uint8_t>(block.sub_scale[0]);
      sub[kGroup + row] = static_cast<std::uint8_t>(block.sub_scale[1]);
      return;
    }
    default: put_f16(scales + kHalves * index, row, block.d);
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
  const int blocks = cols / kBlock, in_chunk = blocks_in_chunk(type);
  const int lines = (blocks + in_chunk - 1) / in_chunk + (has_superblocks(type) ? blocks / kSubBlocks : 0);
  return static_cast<std::size_t>(blocks) * quants_bytes(type) + static_cast<std::size_t>(lines) * kLine;
}

void pack_panel(TensorType type, const std::uint8_t *tensor, int rows, int cols, int group, std::uint8_t *panel) {
  const TypeInfo &info = *type_info(type);
  const std::size_t stride = row_bytes(info, static_cast<std::size_t>(cols));
  std::memset(panel, 0, panel_bytes(type, cols));
  for (int row = 0; row < kGroup && group * kGroup + row < rows; ++row) {
    const std::uint8_t *source = tensor + static_cast<std::size_t>(group * kGroup + row) * stride;
    if (!info.quantised) {
      pack_floats(info, source, cols, row, panel);
      continue;
    }
    std::uint8_t *super = panel, *scales = panel, *next = panel;
    const auto take = [&](std::size_t bytes) { return std::exchange(next, next + bytes); };
    UnpackedBlock block;
    for (int index = 0; index < cols / kBlock; ++index) {
      if (has_superblocks(type) && index % kSubBlocks == 0) super = take(kLine);
      if (index % blocks_in_chunk(type) == 0) scales = take(kLine);
      unpack_block(type, source, index, block);
      pack_quants(block, quant_bits(type), row, take(quants_bytes(type)));
      pack_scales(type, block, index % blocks_in_chunk(type), row, super, scales);
    }
  }
}

}  // namespace csm
