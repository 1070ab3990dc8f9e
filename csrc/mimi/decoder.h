// Codes to sound: RVQ lookup, learned upsampling, transformer, SEANet decoder.
//
// kyutai moshi, models/compression.py MimiModel.decode and modules/seanet.py SEANetDecoder, with all streaming
// state in a value that is passed in. Any cut of the frames into calls, and any set of streams in a call, gives
// the same samples bit for bit.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "mimi/config.h"
#include "mimi/conv.h"
#include "mimi/seanet.h"
#include "mimi/transformer.h"

namespace csm::mimi {

struct DecoderBlock {
  Conv up;  // channels -> channels / 2, `ratio` steps from one
  std::vector<Residual> residuals;
};

struct DecoderWeights {
  std::vector<const float *> codebooks;  // each (codebook_size, codebook_dim), the caller's memory
  Matrix out_proj;                       // (width, 2 * codebook_dim): semantic and acoustic side by side
  std::vector<float> upsample;           // (2 * stride, width): tap p weighs channel by channel; or:
  Conv upsample_conv;                    // when channels are not each a group of their own
  Transformer transformer;
  Conv conv_in;  // width -> filters * 2^ratios
  std::vector<DecoderBlock> blocks;
  Conv conv_out;  // filters -> 1

  bool depthwise() const { return !upsample.empty(); }
  std::vector<Conv *> convs();  // those that keep a context
};

struct DecoderState {
  const void *owner;  // the decoder that made it
  long frames;        // decoded so far
  TransformerState transformer;
  Contexts contexts;

  size_t bytes() const;
};

class Decoder {
 public:
  // Codebooks stay in the caller's memory and must outlive the decoder; all else is copied.
  // Throws std::invalid_argument for a bad configuration or, all together, bad tensors.
  Decoder(const Config &config, const TensorMap &tensors);

  DecoderState new_state() const;

  // codes (streams, frames, stride) of which the first `codebooks` are used, each clamped to the codebook;
  // out (streams, frames * frame_samples). states: one per stream, all different.
  void decode(ThreadPool &pool, const std::vector<DecoderState *> &states, const int *codes, int frames,
              int code_stride, int codebooks, float *out);

  const Config &config() const { return config_; }

  // Measures the stages of each call from now on, anew, or stops; profile() is what was found so far.
  void measure(bool on);
  ProfileResult profile() const;

 private:
  struct Scratch {
    Buffer sums;        // (streams * frames, 2 * codebook_dim)
    Buffer latent;      // signal of width, a step per frame
    Buffer hidden;      // signal of width, at the transformer's rate
    Buffer between[3];  // signals from block to block
    BlockScratch block;
    TransformerScratch transformer;
  };
  struct Pass;  // one call on some of the frames

  void reserve(int streams, int frames, int workers);
  void reserve_block(size_t index, int streams, int frames);
  int steps_before(size_t block) const;  // steps per frame at a block's input
  const Conv &conv_after(size_t block) const;

  // What one worker does, in order; every stage ends with a barrier.
  void run(const Worker &worker, const Pass &pass);
  void look_up(const Worker &worker, const Pass &pass);
  Signal resample(const Worker &worker, const Pass &pass);
  Signal run_block(const Worker &worker, size_t index, const Signal &in, Contexts *const *streams, Buffer &into);
  void finish_slice(const Worker &worker, const Pass &pass, const Signal &in, int stream, int frame);

  Config config_;
  DecoderWeights weights_;
  std::vector<size_t> context_sizes_;  // floats, by number
  mutable std::mutex mutex_;           // one call at a time: the scratch is shared
  Scratch scratch_;
  Profile profile_;
};

}  // namespace csm::mimi
