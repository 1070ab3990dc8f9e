// The codec's transformer: pre-norm, causal, RoPE on interleaved pairs, layer scale, no biases but the norms'.
#pragma once

#include <string>
#include <vector>

#include "foundation/kv_cache.h"
#include "foundation/tensors.h"
#include "mimi/config.h"
#include "mimi/worker.h"

namespace csm::mimi {

struct TransformerLayer {
  Buffer attn_norm_weight, attn_norm_bias;  // (width)
  Buffer ffn_norm_weight, ffn_norm_bias;    // (width)
  Matrix qkv;                               // ((heads + 2 kv_heads) * head_dim, width): q, k, v rows
  Matrix attn_out;                          // (width, heads * head_dim)
  Buffer attn_scale;                        // (width)
  Matrix ffn_up;                            // (ffn, width)
  Matrix ffn_down;                          // (width, ffn)
  Buffer ffn_scale;                         // (width)
};

struct Transformer {
  int width = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0;
  int context = 0;  // positions that a query looks back on, its own included
  float norm_eps = 0;
  std::vector<TransformerLayer> layers;
  std::vector<float> frequencies;  // (head_dim / 2), radians per step

  int key_stride() const { return (context + 15) / 16 * 16; }
  int value_stride() const { return (head_dim + 15) / 16 * 16; }
  int qkv_width() const { return (heads + 2 * kv_heads) * head_dim; }
};

Transformer load_transformer(TensorReader &reader, const std::string &name, const Config &config);

// Of one stream. Keys and values are a ring of `context` positions: step n lies at n % context.
struct TransformerState {
  long position = 0;  // steps so far
  KvCache cache;
};
TransformerState make_state(const Transformer &transformer);

// Scratch of one call.
struct TransformerScratch {
  Buffer normed;    // (rows, width)
  Buffer qkv;       // (rows, qkv_width)
  Buffer attended;  // (rows, heads * head_dim)
  Buffer hidden;    // (rows, ffn)
  Buffer turns;     // (rows, head_dim / 2, 2): cosine, sine
  Buffer heads;     // (workers, key_stride + value_stride)
  void need(const Transformer &transformer, int rows, int workers);
};

// x (streams * steps rows of width) += attention and feed-forward, layer by layer; ends with a barrier.
// states[s] belongs to stream s; their positions advance by `steps`.
void run_transformer(const Worker &worker, const Transformer &transformer, const Rows &x, int streams, int steps,
                     TransformerState *const *states, TransformerScratch &scratch);

}  // namespace csm::mimi
