// CSM's backbone: the Llama tower that looks at all positions, with the head of code 0.
//
// Inputs are embeddings, one a position (the sum of a frame's); results are the tower's hidden state after the final
// norm and code 0's logits. (SesameAILabs/csm, models.py.)
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "llama_tower.h"

namespace csm {

class Backbone {
 public:
  // Packs the weights; the tensors' data may go afterwards. Names and shapes: llama.cpp's for the tower,
  // "output.weight" (vocab, width). Holds the keys and values of `slots` sequences of up to config.positions positions
  // each, in f32. Throws std::invalid_argument that lists everything missing or misshapen.
  Backbone(const TowerConfig &config, int vocab, int slots, const TensorMap &tensors, std::shared_ptr<ThreadPool> pool,
           const KernelTable &kernels);

  // Takes in n vectors in any mix of slots. embeddings: (n, width); slot: (n,), each in 0 .. slots - 1;
  // position: (n,), each the next one of its slot; wanted: (n,), whose results are asked for.
  // Out, for the wanted ones in order: hidden (m, width), logits (m, vocab).
  // A result does not depend on what else is in the pass, nor on how a slot's positions are cut into passes, nor on
  // threads. Throws std::invalid_argument for a slot that is not there or another position, std::length_error for a
  // slot that is full, std::bad_alloc; nothing has changed then.
  void decode(int n, const float *embeddings, const std::int32_t *position, const std::int32_t *slot,
              const bool *wanted, float *hidden, float *logits);

  // Empties a slot.
  void forget(int slot);

  // A copy of the first `count` positions of a slot, saved_floats(count) values; and back, into an empty
  // slot, which then goes on from there as the first one would: the same bits.
  // Throw std::invalid_argument for a slot that is not there, that holds less or, for restore(), anything.
  std::size_t saved_floats(int count) const;
  void save(int slot, int count, float *out) const;
  void restore(int slot, int count, const float *saved);

  // Measures decode from now on, anew, or stops; profile() is what was found so far. Only where all results are wanted,
  // as they are of frames: what takes in a prompt does not count.
  void measure(bool on);
  ProfileResult profile() const;

  const TowerConfig &config() const { return tower_->config(); }
  int vocab() const { return head_.rows; }
  int slots() const { return static_cast<int>(lengths_.size()); }

 private:
  void check(int n, const std::int32_t *position, const std::int32_t *slot) const;
  void check_slot(int slot) const;
  // Rows [begin, end) as spans, each a run of one slot.
  void set_spans(int begin, int end, const std::int32_t *slot, const bool *wanted);
  // Makes room for passes of n vectors, m of them wanted.
  void reserve(int n, int m);
  void run(int n, const float *embeddings, float *hidden, float *logits);
  void finish(int worker, int m, float *hidden, float *logits);

  std::shared_ptr<ThreadPool> pool_;
  MatMul matmul_;
  std::unique_ptr<LlamaTower> tower_;
  PanelMatrix head_{};  // (vocab, width)
  WeightArena arena_;   // owns what the head points to

  std::vector<KvCache> caches_;   // of each slot
  std::vector<int> lengths_;      // of each slot
  std::vector<TowerSpan> spans_;  // of a pass
  std::vector<int> read_;         // the wanted vectors of a pass
  Activations last_;              // (m, width)
  Activations logits_;            // (m, vocab)
  int wanted_ = 0;                // the most m that there is room for

  bool framed_ = false;  // whether all results of this decode are wanted
  Profile profile_{"attention", "feed_forward", "head"};
  mutable std::mutex mutex_;
};

}  // namespace csm
