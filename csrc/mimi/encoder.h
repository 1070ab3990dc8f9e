// Sound to codes: SEANet encoder, transformer, learned downsampling, split residual vector quantiser.
//
// kyutai moshi, models/compression.py MimiModel.encode, modules/seanet.py SEANetEncoder and quantization/vq.py, with
// all streaming state in a value that is passed in. Memory does not depend on the length of the sound.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "mimi/config.h"
#include "mimi/conv.h"
#include "mimi/seanet.h"
#include "mimi/transformer.h"

namespace csm::mimi {

struct EncoderBlock {
  std::vector<Residual> residuals;
  Conv down;  // channels -> 2 * channels, one step from `ratio`
};

struct Codebook {
  const float *rows;  // (codebook_size, codebook_dim), the caller's memory
  Matrix scores;      // the same packed, with bias -|row|^2 / 2: the nearest row has the highest score
};

struct EncoderWeights {
  Conv conv_in;  // 1 -> filters
  std::vector<EncoderBlock> blocks;
  Conv conv_out;  // filters * 2^ratios -> width
  Transformer transformer;
  Conv downsample;  // width -> width, one step from `stride`; begins with its first input repeated
  Matrix in_proj;   // (2 * codebook_dim, width): semantic and acoustic
  std::vector<Codebook> codebooks;

  std::vector<Conv *> convs();  // those that keep a context
};

struct EncoderState {
  const void *owner;  // the encoder that made it
  long frames;        // encoded so far
  TransformerState transformer;
  Contexts contexts;

  size_t bytes() const;
};

class Encoder {
 public:
  // Codebooks stay in the caller's memory and must outlive the encoder; all else is copied.
  // Throws std::invalid_argument for a bad configuration or, all together, bad tensors.
  Encoder(const Config &config, const TensorMap &tensors);

  EncoderState new_state() const;

  // samples (frames * frame_samples); codes (frames, codebooks).
  void encode(ThreadPool &pool, EncoderState &state, const float *samples, int frames, int *codes);

  const Config &config() const { return config_; }

  // Measures the stages of each call from now on, anew, or stops; profile() is what was found so far.
  void measure(bool on);
  ProfileResult profile() const;

 private:
  // Signals of the blocks that run frame by frame, and of those that run on a whole pass.
  struct Stage {
    Buffer between;  // elu(x) with the context of the block's downsampling convolution
    BlockScratch block;
  };
  struct Scratch {
    Buffer audio;
    Stage slice, whole;
    Buffer tail;    // elu(x) for conv_out
    Buffer hidden;  // signal of width, at the transformer's rate
    Buffer latent;  // (frames, width)
    Buffer rest;    // (frames, 2 * codebook_dim): what the codes so far leave
    Buffer scores;  // (frames, codebook_size)
    TransformerScratch transformer;
  };
  struct Pass;

  void reserve(int frames, int workers);
  int steps_after(size_t blocks) const;  // steps per frame after so many blocks
  size_t sliced() const;                 // blocks that run frame by frame
  Signal block_output(size_t index, int frames, Stage &stage) const;
  Outputs input_of(size_t index, int frame, int frames, Stage &stage);

  // What one worker does, in order; every stage ends with a barrier.
  void run(const Worker &worker, const Pass &pass);
  void run_slice(const Worker &worker, const Pass &pass, int frame);
  void run_block(const Worker &worker, const Pass &pass, size_t index, int frames, Stage &stage, const Outputs &out);
  void quantise(const Worker &worker, const Pass &pass);
  void choose(const Worker &worker, const Pass &pass, int k);

  Config config_;
  EncoderWeights weights_;
  std::vector<size_t> context_sizes_;  // floats, by number
  mutable std::mutex mutex_;           // one call at a time: the scratch is shared
  Scratch scratch_;
  Profile profile_;
};

}  // namespace csm::mimi
