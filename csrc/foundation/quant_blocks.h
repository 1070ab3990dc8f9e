// The weight formats of GGUF that this project reads, as ggml lays them out
// (llama.cpp, ggml/src/ggml-common.h). All are little-endian; f16 is IEEE binary16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "foundation/tensor_type.h"

namespace csm {

using f16_bits = std::uint16_t;
using bf16_bits = std::uint16_t;

constexpr int kBlock = 32;        // weights in a plain block
constexpr int kSuperBlock = 256;  // weights in a K-quant's superblock

// w = d (q - 8), 4.5 bits per weight. Byte i holds q[i] below and q[i + 16] above.
struct BlockQ4_0 {
  f16_bits d;
  std::uint8_t qs[kBlock / 2];
};
static_assert(sizeof(BlockQ4_0) == 18, "ggml's block_q4_0");

// w = d q + m, 5 bits per weight.
struct BlockQ4_1 {
  f16_bits d;
  f16_bits m;
  std::uint8_t qs[kBlock / 2];
};
static_assert(sizeof(BlockQ4_1) == 20, "ggml's block_q4_1");

// w = d (q - 16), 5.5 bits per weight. Bit i of the 32 in qh is bit 4 of q[i].
struct BlockQ5_0 {
  f16_bits d;
  std::uint8_t qh[4];
  std::uint8_t qs[kBlock / 2];
};
static_assert(sizeof(BlockQ5_0) == 22, "ggml's block_q5_0");

// w = d q + m, 6 bits per weight.
struct BlockQ5_1 {
  f16_bits d;
  f16_bits m;
  std::uint8_t qh[4];
  std::uint8_t qs[kBlock / 2];
};
static_assert(sizeof(BlockQ5_1) == 24, "ggml's block_q5_1");

// w = d q, 8.5 bits per weight.
struct BlockQ8_0 {
  f16_bits d;
  std::int8_t qs[kBlock];
};
static_assert(sizeof(BlockQ8_0) == 34, "ggml's block_q8_0");

// w = d sc_s q - dmin m_s, 4.5 bits per weight; sub-block s = k / 32; sc and m have 6 bits.
struct BlockQ4_K {
  f16_bits d;
  f16_bits dmin;
  std::uint8_t scales[12];           // 8 sc and 8 m, 6 bits each
  std::uint8_t qs[kSuperBlock / 2];  // byte 32 c + i: q[64 c + i] below, q[64 c + 32 + i] above
};
static_assert(sizeof(BlockQ4_K) == 144, "ggml's block_q4_K");

// As q4_K with 5 bits for q, 5.5 bits per weight.
struct BlockQ5_K {
  f16_bits d;
  f16_bits dmin;
  std::uint8_t scales[12];
  std::uint8_t qh[kSuperBlock / 8];  // bit s of byte i: bit 4 of q[32 s + i]
  std::uint8_t qs[kSuperBlock / 2];
};
static_assert(sizeof(BlockQ5_K) == 176, "ggml's block_q5_K");

// w = d sc_s (q - 32), 6.5625 bits per weight; sub-block s = k / 16; sc is a signed byte.
struct BlockQ6_K {
  std::uint8_t ql[kSuperBlock / 2];  // low 4 bits
  std::uint8_t qh[kSuperBlock / 4];  // high 2 bits
  std::int8_t scales[kSuperBlock / 16];
  f16_bits d;
};
static_assert(sizeof(BlockQ6_K) == 210, "ggml's block_q6_K");

// Any quantised block of 32 weights, its parts taken apart but nothing rounded:
//   w[k] = d * sub_scale[k / 16] * (q[k] - zero) + offset, offset = m (q4_1, q5_1) or -m * sub_min (q4_K, q5_K)
struct UnpackedBlock {
  std::uint8_t q[kBlock];  // q8_0's signed values have 128 added
  f16_bits d;
  f16_bits m;                // 0 where the format has none
  std::int8_t sub_scale[2];  // 1 where the format has none
  std::uint8_t sub_min;      // 0 where the format has none
};

struct TypeInfo {
  TensorType type;
  const char *name;
  int block;  // weights in one block of the file
  int block_bytes;
  bool quantised;
  int zero;  // the q that stands for 0; 0 for the formats with an offset
};

// Null for a type that this project does not read.
const TypeInfo *type_info(TensorType type);

// Bytes of a row of `cols` weights; cols must be whole blocks.
std::size_t row_bytes(const TypeInfo &info, std::size_t cols);

// Block `index` (of 32 weights) of a row of a quantised type.
void unpack_block(TensorType type, const std::uint8_t *row, int index, UnpackedBlock &out);

// out[k] = the weight as f32, k < cols, for every type.
void dequantise_row(TensorType type, const std::uint8_t *row, int cols, float *out);

}  // namespace csm
