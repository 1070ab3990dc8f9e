// A Llama tower on packed weights, for a batch of any mix of sequences and positions: pre-norm attention with rotary
// positions and shared key heads, then a SwiGLU feed-forward (Touvron et al. 2023). CSM's backbone and its codebook
// decoder are each such a tower.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "foundation/kv_cache.h"
#include "foundation/profile.h"
#include "foundation/rules.h"
#include "foundation/thread_pool.h"
#include "kernels/kernels.h"
#include "matmul.h"
#include "weights.h"

namespace csm {

struct TowerConfig {
  int layers;
  int width;
  int heads;
  int kv_heads;
  int head_dim;  // even
  int ffn;
  float norm_eps;
  double rope_theta;
  int positions;  // the most of a sequence

  int q_width() const { return heads * head_dim; }
  int kv_width() const { return kv_heads * head_dim; }

  // Of the keys and values of one sequence, laid out as packed matrices: panels of 16 rows.
  KvSizes kv_sizes() const { return {layers, kv_heads, head_dim, positions, kGroup, kGroup}; }

  // Which rules the sizes break.
  Rules rules() const;
};

// The tensors of a tower, by llama.cpp's names ("blk.0.attn_q.weight" ...), taken before anything is packed.
struct TowerSources {
  struct Layer {
    const TensorSource *attn_norm, *q, *k, *v, *o, *ffn_norm, *gate, *up, *down;
  };
  std::vector<Layer> layers;
  const TensorSource *output_norm;
  const TensorSource *divisors;  // of the rotary frequencies; null where there are none

  // Notes what is missing or misshapen in the reader.
  static TowerSources take(TensorReader &reader, const TowerConfig &config);
};

struct TowerLayer {
  std::vector<float> attn_norm;  // (width,)
  PanelMatrix q;                 // (q_width, width), rows in interleaved pairs for the rotation
  PanelMatrix k;                 // (kv_width, width), in interleaved pairs too
  PanelMatrix v;                 // (kv_width, width)
  PanelMatrix o;                 // (width, q_width)
  std::vector<float> ffn_norm;   // (width,)
  PanelMatrix gate;              // (ffn, width)
  PanelMatrix up;                // (ffn, width)
  PanelMatrix down;              // (width, ffn)
};

// Consecutive positions of one sequence in a batch: vectors first .. first + count - 1.
struct TowerSpan {
  KvCache *cache;
  int position;  // of the first
  int first;
  int count;
};

class LlamaTower {
 public:
  // Packs the weights; the sources' data may go afterwards. TensorReader::check() must have passed.
  LlamaTower(const TowerConfig &config, const TowerSources &sources, ThreadPool &pool, const KernelTable &kernels);

  // Makes room for n vectors.
  void reserve(int n);

  // The residual stream (n, width): inputs go in before forward(), results are read after it. Never rounded.
  Activations &residual() { return x_; }
  const PanelMatrix &first_matrix() const { return layers_[0].q; }

  // These two run one worker's share inside a job of the pool; every worker calls them alike. A barrier must come
  // before the first and separates it from the second.

  // Runs all layers over the n vectors of the spans. Results of a vector depend on its own sequence alone, and not on
  // the spans that it came in. `after`: the matrix that reads the result, prefetched in time. Stages: "attention" and
  // "feed_forward"; norms and roundings count to what they are for.
  void forward(int worker, const std::vector<TowerSpan> &spans, int n, const PanelMatrix &after, Profile &profile);
  // out[i] = the final norm of vector vectors[i], for i < n.
  void final_norm(int worker, int n, const int *vectors, bool rounded, Activations &out);

  const TowerConfig &config() const { return config_; }

 private:
  void make_rotation(const std::vector<float> &divisors);
  void attention_inputs(int worker, const std::vector<TowerSpan> &spans, int n, int layer);
  // Of the first `count` positions, for one key head: keys (count, head_dim) and transposed values (head_dim, count).
  PanelMatrix keys(const KvCache &cache, int layer, int head, int count) const;
  PanelMatrix values(const KvCache &cache, int layer, int head, int count) const;
  void attend(int worker, const std::vector<TowerSpan> &spans, int layer);
  void attend_heads(int worker, const TowerSpan &span, int layer, int first_head, int heads);
  void attend_tile(int worker, const TowerSpan &span, int layer, int first_head, int heads, int step, int steps);
  void feed_forward(int worker, int n, const TowerLayer &layer);
  void normalise(int worker, int n, const int *vectors, const std::vector<float> &weight, bool rounded,
                 Activations &out);
  void add_matmul(int worker, int n, const PanelMatrix &matrix, const PanelMatrix &next, const Activations &in);
  void rotate(float *vector, Range rows, int position) const;

  struct Scratch {               // of one worker, for a tile of attention
    std::vector<float> queries;  // (tile, head_dim)
    std::vector<float> scores;   // (tile, positions rounded up to whole panels)
    std::vector<float> sums;     // (tile, head_dim rounded up to whole panels)
  };

  TowerConfig config_;
  MatMul matmul_;
  const KernelTable &kernels_;
  std::vector<TowerLayer> layers_;
  std::vector<float> output_norm_;  // (width,)
  std::vector<float> cosines_;      // (positions, head_dim / 2): of the angle of each position and pair
  std::vector<float> sines_;        // (positions, head_dim / 2)
  WeightArena arena_;               // owns what the matrices point to

  int vectors_ = 0;               // that there is room for
  Activations x_;                 // (n, width)
  Activations normed_;            // (n, width)
  Activations q_, k_, v_;         // (n, q_width), (n, kv_width) x 2
  Activations attended_;          // (n, q_width)
  Activations sum_;               // (n, width): a product on its way to the residual stream
  Activations gate_, up_;         // (n, ffn)
  Activations hidden_;            // (n, ffn)
  std::vector<Scratch> scratch_;  // of each worker
};

}  // namespace csm
