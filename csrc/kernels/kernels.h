// Products of packed weight matrices with activation vectors, and the vector operations between them:
// the contract that every instruction set fulfils, and the table through which they are called.
//
// The files that implement it are compiled for one instruction set each. They include nothing but this header, the enum
// of types and the .inc files, and keep everything else internal, so that no inline function compiled
// for a newer CPU can be picked by the linker for an older one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "foundation/tensor_type.h"

namespace csm {

enum class Isa;

constexpr int kGroup = 16;  // rows interleaved in a packed matrix
constexpr int kLine = 64;   // alignment of a packed panel, bytes
// Distance of prefetches, and bytes of the next matrix that are prefetched: enough to cover the memory's latency, small
// beside a second-level cache.
constexpr int kAhead = 8192;

// 32 activations: x[k] is about scale * q[k], |q[k]| <= 127. The rounding error of x[k] is at most scale / 2.
// A batch of n vectors is stored block by block: block k of vector b is at index k * n + b.
struct alignas(16) XBlock {
  std::int8_t q[32];
  float scale;
  float scaled_sum;             // scale * sum of q
  std::int32_t minus_sum;       // -(sum of q)
  std::int32_t minus_sum_high;  // -(sum of q[16..32))
};
static_assert(sizeof(XBlock) == 48, "four vectors' blocks are three cache lines");

// A matrix (rows, cols) laid out for the kernels: panels of 16 rows, each panel contiguous and 64-byte aligned.
//
// Float types: for each column, the 16 rows' weights side by side.
// Quantised types: chunks of 1 or 2 blocks of 32 columns, each one line of scales and then the quants of its blocks;
// before each 4 chunks of a superblock a line of its scales. So a panel is read from its first byte to its last: the
// hardware's prefetchers follow that at the full bandwidth, and reach little more than half of it where the scales lie
// in a place of their own.
//   Quants of a block of 32 columns, in lines of 64 bytes; byte 4 r + i of line j belongs to row r and column 4 j + i:
//     8 bits: 8 lines.
//     4 bits: 4 lines; low nibbles hold columns 0..15, high nibbles 16..31.
//     5 bits: 4 lines as above, then one whose bit j of byte 4 r + i is bit 4 of column 4 j + i.
//     6 bits: 4 lines as above, then two (columns 0..15 and 16..31) whose bits 2 j, 2 j + 1 are bits 4, 5.
//   Scales, 16 rows side by side:
//     q8_0, q4_0, q5_0: chunks of 2 blocks; f16 d for each block. A last chunk of one block has room for two.
//     q4_1, q5_1: chunks of 1 block; f16 d and f16 m.
//     q4_K, q5_K: superblocks, f16 d and f16 dmin; chunks of 2 blocks, u8 sc and u8 m for each block.
//     q6_K: superblocks, f16 d; chunks of 2 blocks, i8 sc of columns 0..15 and of 16..31 for each block.
// Rows beyond the matrix's own are zero.
struct PanelMatrix {
  TensorType type;
  int rows;
  int cols;
  std::size_t panel_bytes;
  const std::uint8_t *panels;

  int groups() const { return (rows + kGroup - 1) / kGroup; }
  int padded_rows() const { return groups() * kGroup; }
};

struct KernelTable {
  // out[b * out_stride + r] = sum over k of w[r][k] x_b[k], for the rows r of groups [begin, end) and the n vectors
  // b of the batch. Rows are written in whole groups: out_stride >= padded_rows(). The sum of one output is taken in
  // an order that does not depend on n, begin or end. Quantised types: int32 within a block of 32 (exact: at most
  // 32 * 255 * 127), f32 across blocks. x has cols / 32 * n blocks.
  // `next` is where this thread goes on reading after these groups (any address: it is only prefetched from).
  void (*matmul_quantised)(const PanelMatrix &matrix, int begin, int end, const XBlock *x, int n, float *out,
                           std::ptrdiff_t out_stride, const std::uint8_t *next);
  // The same for f32, f16 and bf16 weights, in f32; vector b starts at x + b * x_stride.
  void (*matmul_float)(const PanelMatrix &matrix, int begin, int end, const float *x, std::ptrdiff_t x_stride, int n,
                       float *out, std::ptrdiff_t out_stride, const std::uint8_t *next);

  // Rounds x (32 * blocks values) to blocks out[0], out[stride], out[2 stride] ...: scale = max |x| / 127,
  // q = x / scale rounded to nearest, ties to even. A block that holds NaN or infinity gets a NaN scale.
  void (*quantise)(const float *x, int blocks, XBlock *out, std::ptrdiff_t stride);

  // out[i] = x[i] / sqrt(mean of x^2 + eps) * weight[i]
  void (*rms_norm)(const float *x, const float *weight, int n, float eps, float *out);
  // out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
  void (*silu_mul)(const float *gate, const float *up, int n, float *out);
  // x[i] = exp(x[i] - max x) / sum of them
  void (*softmax)(float *x, int n);
  // y[i] += a x[i]
  void (*add_scaled)(float a, const float *x, int n, float *y);
};

// The table of the instruction set in force (foundation/isa.h); throws as active_isa() does.
const KernelTable &kernels();

// The table of one instruction set; the caller makes sure that the CPU has it.
// Throws std::invalid_argument for one that this build lacks.
const KernelTable &kernels(Isa isa);

extern const KernelTable kScalarKernels;
#if defined(__x86_64__)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx2VnniKernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx512VnniKernels;
#elif defined(__aarch64__)
extern const KernelTable kNeonKernels;
extern const KernelTable kNeonDotprodKernels;
#endif

}  // namespace csm
