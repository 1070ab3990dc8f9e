// Draws one code from logits: temperature, top-k, by the Gumbel-max method with noise that is a function of
// (seed, number of the draw, entry). One sampler per stream.
#pragma once

#include <cstdint>
#include <vector>

namespace csm {

// How entries are chosen among.
struct Choice {
  float temperature;  // >= 0, finite; 0 is greedy and ignores the seed
  int top_k;          // <= 0 or >= the vocabulary keeps every entry
};

struct SamplerConfig {
  std::uint64_t seed;
  Choice first;  // code 0, from the backbone
  Choice depth;  // codes 1 .. K - 1, from the depth decoder
};

// The code is the argmax over the kept entries of logit / temperature + noise, which is a draw from
// softmax(logits / temperature) over them (Gumbel 1954; Yellott 1977). Because the noise belongs to the entry and not
// to its rank, a small change of the logits (another instruction set, a quantised copy) changes few codes.
//
// Kept: the entries whose logit is at least the top_k-th largest, so that ties with it stay in.
// Equal scores: the lowest entry wins. NaN is never chosen; with nothing else (all NaN or -inf), the code is 0.
// Noise: -log(-log(u)), u from SplitMix64's output function (Steele, Lea, Flood 2014) of the three numbers.
class Sampler {
 public:
  // Throws std::invalid_argument for a negative or non-finite temperature.
  explicit Sampler(const SamplerConfig &config);

  // Makes room to draw among so many entries: sample() then takes no memory, as a job of a thread pool must not.
  void reserve(int vocab);

  // logits: (vocab,) f32, vocab >= 1, of the code `codebook`. Counts as one draw whatever the temperature.
  int sample(const float *logits, int vocab, int codebook);

  const SamplerConfig &config() const { return config_; }
  std::uint64_t draws() const { return draws_; }

 private:
  void keep_largest(const float *logits, int vocab, int top_k);

  SamplerConfig config_;
  std::uint64_t draws_ = 0;
  // Scratch of one draw.
  std::vector<float> maxima_;   // of groups of entries
  std::vector<float> largest_;  // logits among which the top_k-th largest is
  std::vector<int> kept_;       // entries, rising
};

}  // namespace csm
