#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

namespace csm {
namespace {

constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio, SplitMix64's increment
constexpr double kLargestNoise = 36.8;  // above -log(-log(1 - 2^-53)) = 36.74, the largest that uniform() gives

std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// In (0, 1): 52 bits, centred in their steps, so that neither end is reached.
double uniform(std::uint64_t key, int entry) {
  const std::uint64_t bits = mix(key + kGolden * static_cast<std::uint64_t>(entry + 1));
  return (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
}

int argmax(const float *logits, int vocab) {
  int best = 0;
  float largest = -std::numeric_limits<float>::infinity();
  for (int i = 0; i < vocab; ++i)
    if (logits[i] > largest) {
      largest = logits[i];
      best = i;
    }
  return best;
}

}  // namespace

Sampler::Sampler(const SamplerConfig &config) : config_(config) {
  for (const float temperature : {config.first.temperature, config.depth.temperature})
    if (!(temperature >= 0.0f) || !std::isfinite(temperature))
      throw std::invalid_argument("temperature must be a finite number of at least 0, not " +
                                  std::to_string(temperature));
}

// The top_k-th largest logit; -inf where fewer are numbers.
float Sampler::threshold(const float *logits, int vocab, int top_k) {
  const auto k = static_cast<std::size_t>(top_k);
  largest_.clear();
  for (int i = 0; i < vocab; ++i) {
    const float logit = logits[i];
    if (largest_.size() < k) {
      if (logit != logit) continue;
      largest_.push_back(logit);
      std::push_heap(largest_.begin(), largest_.end(), std::greater<float>());
    } else if (logit > largest_.front()) {
      std::pop_heap(largest_.begin(), largest_.end(), std::greater<float>());
      largest_.back() = logit;
      std::push_heap(largest_.begin(), largest_.end(), std::greater<float>());
    }
  }
  return largest_.size() < k ? -std::numeric_limits<float>::infinity() : largest_.front();
}

int Sampler::sample(const float *logits, int vocab, int codebook) {
  const Choice &choice = codebook == 0 ? config_.first : config_.depth;
  const std::uint64_t key = mix(mix(config_.seed + kGolden) + kGolden * ++draws_);
  const int greedy = argmax(logits, vocab);
  if (choice.temperature == 0.0f || std::isinf(logits[greedy])) return greedy;
  const bool all = choice.top_k <= 0 || choice.top_k >= vocab;
  const float least = all ? -std::numeric_limits<float>::infinity() : threshold(logits, vocab, choice.top_k);
  const double scale = 1.0 / static_cast<double>(choice.temperature);

  // Scores are taken relative to the largest logit, so that a tiny temperature cannot overflow them.
  const double top = static_cast<double>(logits[greedy]);
  double best = -std::numeric_limits<double>::infinity();
  int code = greedy;
  for (int i = 0; i < vocab; ++i) {
    if (!(logits[i] >= least)) continue;  // NaN as well
    const double scaled = (static_cast<double>(logits[i]) - top) * scale;
    if (!(scaled + kLargestNoise > best)) continue;  // no noise could make it the best
    const double score = scaled - std::log(-std::log(uniform(key, i)));
    if (score > best) {
      best = score;
      code = i;
    }
  }
  return code;
}

}  // namespace csm
