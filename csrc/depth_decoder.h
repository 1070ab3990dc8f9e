// CSM's depth decoder: from a backbone's hidden state and code 0 to the frame's other codes.
//
// Position 0 of its Llama tower is the hidden state, position p >= 1 the embedding of code p - 1 (row code + (p - 1) V
// of the audio table), each through `projection`; head p - 1 reads position p and gives the logits of code p.
// (SesameAILabs/csm, models.py, generate_frame.)
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "foundation/thread_pool.h"
#include "kernels/kernels.h"
#include "llama_tower.h"
#include "matmul.h"
#include "sampler.h"
#include "weights.h"

namespace csm {

struct DepthDecoderConfig {
  TowerConfig tower;  // positions: K
  int codebooks;      // K, codes in a frame
  int vocab;          // V, entries of a codebook
  int input_width;    // of the hidden state and of the audio embeddings

  // Which rules the sizes break.
  Rules rules() const;
};

// Slots at consecutive positions in a run of the tower: vector b * steps + t is slot b at position + t.
struct Steps {
  int slots;
  int count;
  int position;
  int vectors() const { return slots * count; }
};

class DepthDecoder {
 public:
  // Packs the weights; of `tensors` only the audio table's data must outlive the decoder. Names and shapes:
  // llama.cpp's for the tower, "projection" (width, input_width), "heads" (K - 1, V, width), "audio_embd"
  // (K V, input_width). Throws std::invalid_argument that lists everything missing or misshapen.
  DepthDecoder(const DepthDecoderConfig &config, const TensorMap &tensors, std::shared_ptr<ThreadPool> pool,
               const KernelTable &kernels);

  // One frame of each slot. hidden: (slots, input_width); c0_logits: (slots, V); samplers: one for each slot;
  // codes out: (slots, K). A slot's codes do not depend on the others, nor on the number of threads.
  void decode_frames(int slots, const float *hidden, const float *c0_logits, Sampler *const *samplers,
                     std::int32_t *codes);

  // Teacher-forced: codes (slots, K), each in 0 .. V - 1; out (slots, K - 1, V), the logits of codes 1 .. K - 1.
  void logits(int slots, const float *hidden, const std::int32_t *codes, float *out);

  // Measures decode_frames from now on, anew, or stops; profile() is what was found so far.
  void measure(bool on);
  ProfileResult profile() const;

  const DepthDecoderConfig &config() const { return config_; }

 private:
  void reserve(int slots, int steps);
  // What the tower is to run over; by one thread, while no worker of a job reads it.
  void set_spans(const Steps &steps);

  // Each runs one worker's share; a barrier must separate it from the next that reads its result.
  void put_hidden(int worker, const Steps &steps, const float *hidden);
  void put_embeddings(int worker, const Steps &steps, int step, int codebook, const std::int32_t *codes);
  void draw(int worker, int slots, const float *logits, std::ptrdiff_t stride, Sampler *const *samplers, int codebook,
            std::int32_t *codes);
  void project(int worker, const Steps &steps);
  void run_tower(int worker, const Steps &steps, int codebook);
  void head(int worker, const Steps &steps, int step, int codebook);

  DepthDecoderConfig config_;
  std::shared_ptr<ThreadPool> pool_;
  MatMul matmul_;
  std::unique_ptr<LlamaTower> tower_;
  EmbeddingTable audio_embd_{};     // (K V, input_width)
  PanelMatrix projection_{};        // (width, input_width)
  std::vector<PanelMatrix> heads_;  // K - 1 of (V, width)
  WeightArena arena_;               // owns what the projection and the heads point to

  std::vector<KvCache> caches_;   // of each slot
  std::vector<TowerSpan> spans_;  // of each slot
  std::vector<int> read_;         // (slots,): the vectors that the head reads
  Activations input_;             // (n, input_width): hidden states and embeddings
  Activations last_;              // (slots, width)
  Activations logits_;            // (slots, V)
  int slots_ = 0;                 // that there is room for
  int vectors_ = 0;               // that there is room for

  // The projection's time is with the look-up of the embeddings.
  Profile profile_{"projection", "attention", "feed_forward", "heads", "sampling"};
  mutable std::mutex mutex_;
};

}  // namespace csm
