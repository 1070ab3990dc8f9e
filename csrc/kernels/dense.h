// Float kernels of the codec: small matrix products with their epilogues, attention, layer norm.
//
// One table of functions per instruction set; dense_scalar.cpp is the reference. Only plain structs here: the
// files of an instruction set are compiled with its flags and must share no inline code with others.
//
// Every output of multiply() is one chain of fused multiply-adds over k = 0, 1, ..., whatever the number of rows
// in the call: results do not depend on how rows are cut into calls, so streaming equals one-shot bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace csm {

enum class Isa : int;  // foundation/isa.h

// `count` rows in blocks of `per_block` (a block is one stream of sound): row r starts at
// base + (r / per_block) * block_stride + (r % per_block) * row_stride, in floats.
// Rows may overlap: a causal convolution reads rows of kernel * channels floats, one step apart.
struct ConstRows {
  const float *base;
  int per_block;
  ptrdiff_t row_stride;
  ptrdiff_t block_stride;
};
struct Rows {
  float *base;  // null where an output is not wanted
  int per_block;
  ptrdiff_t row_stride;
  ptrdiff_t block_stride;
};

// Weights (n, k) packed for one instruction set: panels of `panel` columns (the last one narrower, rounded up to
// `lane`), each panel k rows of its width, zero-padded, 64-byte aligned. A single output (n == 1) stays one row of k.
// Weights are float32, or IEEE half precision where the model holds that: they become float32 as they are loaded.
struct PackedMatrix {
  int n;                 // outputs
  int k;                 // inputs
  const float *data;     // panel p begins at element p * panel * k; null where there is `half`
  const uint16_t *half;  // the same in half precision; never for n == 1
  const float *bias;     // (n rounded up to lane), zeros where there is none
};

enum class Activation { none, elu, gelu };

// For all rows r and outputs n:
//   v = bias[n] + sum_k x[r][k] * w[n][k]
//   v = skip[r][n] + scale[n] * v     where there is a skip (scale: 1 where null)
//   y[r][n] = v                       where y is wanted
//   active[r][n] = activation(v)      where active is wanted
// y may be skip. With n == 1 there is y alone, without skip.
struct DenseMatMul {
  const PackedMatrix *w;
  ConstRows x;
  ConstRows skip;      // base null: none
  const float *scale;  // (n) or null
  Rows y;
  Rows active;
  Activation activation;
};

// One head of one query: out = softmax(scale * q . keys) . values over the first `positions` positions.
struct Attention {
  const float *q;       // (head_dim)
  const float *keys;    // (head_dim, key_stride), position by position inside a row; key_stride a multiple of 16
  const float *values;  // (positions, value_stride); value_stride a multiple of 16, zeros beyond head_dim
  float *scores;        // (key_stride) scratch
  float *out;           // (value_stride)
  int head_dim;
  int positions;
  int key_stride;
  int value_stride;
  float scale;
};

struct DenseKernels {
  int panel;  // columns per panel
  int lane;   // widths of panels are multiples of it

  // Columns [panel * K.panel, (panel + 1) * K.panel) of rows [begin, end).
  void (*multiply)(const DenseMatMul &product, int panel, int begin, int end);

  // y = gamma * (x - mean) / sqrt(variance + eps) + beta over `n` values (a multiple of nothing).
  void (*layer_norm)(const float *x, const float *gamma, const float *beta, float eps, int n, float *y);

  void (*attend)(const Attention &head);
};

extern const DenseKernels kDenseScalar;
#if defined(__x86_64__)
extern const DenseKernels kDenseAvx2;
extern const DenseKernels kDenseAvx512;
#elif defined(__aarch64__)
extern const DenseKernels kDenseNeon;
#endif

// Panels of an (n)-output matrix.
int dense_panels(const DenseKernels &kernels, int n);

// Elements that its packed data take.
size_t dense_packed_size(const DenseKernels &kernels, int n, int k);

// The table of an instruction set, and of the one in force (foundation/isa.h).
const DenseKernels &dense_kernels(Isa isa);
const DenseKernels &dense_kernels();

}  // namespace csm
