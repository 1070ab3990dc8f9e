// CSM's codebook ("depth") decoder: from a backbone's hidden state and code 0 to the frame's other codes.
//
// Position 0 of its Llama tower is the hidden state, position p >= 1 the embedding of code p - 1 (row code + (p - 1) V
// of the audio table), each through `projection`; head p - 1 reads position p and gives the logits of code p.
// (SesameAILabs/csm, models.py, generate_frame.)
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/kernels.h"
#include "sampler.h"
#include "thread_pool.h"
#include "weights.h"

namespace csm {

struct DecoderConfig {
  int layers;
  int width;
  int heads;
  int kv_heads;
  int head_dim;  // even
  int ffn;
  float norm_eps;
  double rope_theta;
  int codebooks;    // K, codes in a frame; also the number of positions
  int vocab;        // V, entries of a codebook
  int input_width;  // of the hidden state and of the audio embeddings

  int q_width() const { return heads * head_dim; }
  int kv_width() const { return kv_heads * head_dim; }
};

struct DecoderLayer {
  std::vector<float> attn_norm;  // (width,)
  PanelMatrix q;                // (q_width, width), rows in interleaved pairs for the rotation
  PanelMatrix k;                // (kv_width, width), likewise
  PanelMatrix v;                // (kv_width, width)
  PanelMatrix o;                // (width, q_width)
  std::vector<float> ffn_norm;   // (width,)
  PanelMatrix gate;             // (ffn, width)
  PanelMatrix up;               // (ffn, width)
  PanelMatrix down;             // (width, ffn)
};

struct DecoderWeights {
  EmbeddingTable audio_embd;        // (K V, input_width)
  PanelMatrix projection;          // (width, input_width)
  std::vector<DecoderLayer> layers;
  std::vector<float> output_norm;   // (width,)
  std::vector<PanelMatrix> heads;  // K - 1 of (V, width)
  std::vector<float> cosines;       // (K, head_dim / 2): of the angle of each position and pair
  std::vector<float> sines;         // (K, head_dim / 2)
  WeightArena arena;                // owns what the matrices point to
};

// Input of a product: n vectors in f32, and rounded to blocks where a quantised matrix takes them.
struct Activations {
  int cols = 0;
  int stride = 0;              // of f32, cols rounded up to whole panels
  std::vector<float> f32;      // (n, stride)
  std::vector<XBlock> blocks;  // (cols / 32, n)

  void resize(int columns, int n);
  float *row(int vector) { return f32.data() + static_cast<std::ptrdiff_t>(vector) * stride; }
  const float *row(int vector) const { return f32.data() + static_cast<std::ptrdiff_t>(vector) * stride; }
};

// What a run works on: `streams` streams at `steps` positions from `position` on. Vector b * steps + t is stream b at
// position + t.
struct Span {
  int streams;
  int steps;
  int position;
  int vectors() const { return streams * steps; }
};

struct DecoderState {
  std::vector<float> keys;    // (layers, streams, K, kv_width), rotated
  std::vector<float> values;  // (layers, streams, K, kv_width)
  Activations input;          // (n, input_width): hidden states and embeddings
  Activations x;              // (n, width): the residual stream; never rounded
  Activations normed;         // (n, width)
  Activations q, k, v;        // (n, q_width), (n, kv_width) x 2
  Activations attended;       // (n, q_width)
  Activations sum;            // (n, width): a product on its way to the residual stream
  Activations gate, up;       // (n, ffn)
  Activations hidden;         // (n, ffn)
  Activations last;           // (streams, width): the positions that the head reads
  Activations logits;         // (streams, V)
  std::vector<float> scores;  // (threads, K)
};

// Where the time of decode_frames goes, in seconds; norms, roundings and barriers count to what they are for.
struct DecoderParts {
  double projection = 0;  // with the look-up of the embeddings
  double attention = 0;
  double feed_forward = 0;
  double heads = 0;
  double sampling = 0;
};

class CodebookDecoder {
 public:
  // Packs the weights; of `tensors` only the audio table's data must outlive the decoder. Names and shapes:
  // llama.cpp's for the tower ("blk.0.attn_q.weight" ...), "projection" (width, input_width), "heads" (K - 1, V, width),
  // "audio_embd" (K V, input_width). Throws std::invalid_argument that lists everything missing or misshapen.
  CodebookDecoder(const DecoderConfig &config, const TensorMap &tensors, std::shared_ptr<ThreadPool> pool,
                  const KernelTable &kernels);

  // One frame of each stream. hidden: (streams, input_width); c0_logits: (streams, V); samplers: one for each stream;
  // codes out: (streams, K). A stream's codes do not depend on the others, nor on the number of threads.
  void decode_frames(int streams, const float *hidden, const float *c0_logits, Sampler *const *samplers,
                     std::int32_t *codes);

  // Teacher-forced: codes (streams, K), each in 0 .. V - 1; out (streams, K - 1, V), the logits of codes 1 .. K - 1.
  void logits(int streams, const float *hidden, const std::int32_t *codes, float *out);

  // Measures decode_frames from now on, anew, or stops; parts() is what was found so far.
  void measure(bool on);
  DecoderParts parts() const;

  const DecoderConfig &config() const { return config_; }
  std::size_t weight_bytes() const { return weights_.arena.used(); }

 private:
  void resize(int streams, int steps);
  int members() const { return pool_->threads(); }

  // Each runs one member's share; a barrier must separate it from the next that reads its result.
  void put_hidden(int member, const Span &span, const float *hidden);
  void put_embeddings(int member, const Span &span, int step, int codebook, const std::int32_t *codes);
  void draw(int member, int streams, const float *logits, std::ptrdiff_t stride, Sampler *const *samplers, int codebook,
            std::int32_t *codes);
  void project(int member, const Span &span);
  void run_layers(int member, const Span &span, const PanelMatrix &after);
  void attention_inputs(int member, const Span &span, int layer);
  void attend(int member, const Span &span, int layer);
  void feed_forward(int member, const Span &span, const DecoderLayer &layer);
  void head(int member, const Span &span, int step, int codebook);

  void normalise(int member, int n, int first, int pitch, const std::vector<float> &weight, bool rounded, Activations &out);
  void round(int member, int n, Activations &in);
  Range panels_of(int member, const PanelMatrix &matrix) const;
  // The member's share of matrix in; returns its rows. `next` is the matrix that the member reads after this one.
  Range multiply(int member, const PanelMatrix &matrix, const PanelMatrix &next, const Activations &in, int n,
                 Activations &out);
  void add_product(int member, int n, const PanelMatrix &matrix, const PanelMatrix &next, const Activations &in);
  void rotate(const float *in, int row_begin, int row_end, int position, float *out) const;
  // Counts the time since the last lap to a part. Kept by member 0: a part ends with a barrier, so its clock is
  // everybody's.
  void lap(int member, double DecoderParts::*part);
  float *cached(std::vector<float> &cache, int layer, int stream, int position);

  DecoderConfig config_;
  std::shared_ptr<ThreadPool> pool_;
  const KernelTable &kernels_;
  DecoderWeights weights_;
  DecoderState state_;
  int streams_ = 0;  // that the state has room for
  int vectors_ = 0;
  bool measuring_ = false;
  bool lapping_ = false;  // measuring, and inside decode_frames
  std::chrono::steady_clock::time_point last_lap_;
  DecoderParts parts_;
  mutable std::mutex mutex_;
};

}  // namespace csm
