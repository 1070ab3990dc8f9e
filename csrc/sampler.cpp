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
constexpr int kGroupEntries = 16;

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

// The largest number among each group's entries, -inf where there is none. The groups interleave, so that their maxima
// are taken side by side; the entries left over are a group each.
void group_maxima(const float *logits, int vocab, std::vector<float> &out) {
  const int groups = vocab / kGroupEntries, left = vocab % kGroupEntries;
  out.assign(static_cast<std::size_t>(groups + left), -std::numeric_limits<float>::infinity());
  float *maxima = out.data();
  const auto take = [&](int g, float logit) { maxima[g] = logit > maxima[g] ? logit : maxima[g]; };
  for (int entry = 0; entry < kGroupEntries; ++entry, logits += groups)
    for (int g = 0; g < groups; ++g) take(g, logits[g]);
  for (int i = 0; i < left; ++i) take(groups + i, logits[i]);
}

// The k-th largest of them, which are reordered; -inf where there are fewer.
float kth_largest(std::vector<float> &values, std::size_t k) {
  if (values.size() < k) return -std::numeric_limits<float>::infinity();
  const auto kth = values.begin() + static_cast<std::ptrdiff_t>(k - 1);
  std::nth_element(values.begin(), kth, values.end(), std::greater<float>());
  return *kth;
}

}  // namespace

Sampler::Sampler(const SamplerConfig &config) : config_(config) {
  for (const float temperature : {config.first.temperature, config.depth.temperature})
    if (!(temperature >= 0.0f) || !std::isfinite(temperature))
      throw std::invalid_argument("temperature must be a finite number of at least 0, not " +
                                  std::to_string(temperature));
}

void Sampler::reserve(int vocab) {
  const auto most = static_cast<std::size_t>(vocab);
  maxima_.reserve(most / kGroupEntries + kGroupEntries);
  kept_.reserve(most);
  largest_.reserve(most);
}

// Fills kept_ with the entries whose logit is at least the top_k-th largest. The top_k-th largest of the groups' maxima
// is no more than that, and few entries reach it.
void Sampler::keep_largest(const float *logits, int vocab, int top_k) {
  const auto k = static_cast<std::size_t>(top_k);
  const float bound = kth_largest(maxima_, k);
  kept_.clear();
  largest_.clear();
  for (int i = 0; i < vocab; ++i)
    if (logits[i] >= bound) {
      kept_.push_back(i);
      largest_.push_back(logits[i]);
    }
  const float least = kth_largest(largest_, k);
  kept_.erase(std::remove_if(kept_.begin(), kept_.end(), [&](int i) { return logits[i] < least; }), kept_.end());
}

int Sampler::sample(const float *logits, int vocab, int codebook) {
  const Choice &choice = codebook == 0 ? config_.first : config_.depth;
  const std::uint64_t key = mix(mix(config_.seed + kGolden) + kGolden * ++draws_);
  group_maxima(logits, vocab, maxima_);
  const float largest = *std::max_element(maxima_.begin(), maxima_.end());
  if (largest == -std::numeric_limits<float>::infinity()) return 0;
  const int greedy = static_cast<int>(std::find(logits, logits + vocab, largest) - logits);
  if (choice.temperature == 0.0f || std::isinf(largest)) return greedy;

  // Scores are taken relative to the largest logit, so that a tiny temperature cannot overflow them.
  const double top = static_cast<double>(largest), scale = 1.0 / static_cast<double>(choice.temperature);
  double best = -std::numeric_limits<double>::infinity();
  int code = greedy;
  const auto consider = [&](int i) {
    const double scaled = (static_cast<double>(logits[i]) - top) * scale;
    if (!(scaled + kLargestNoise > best)) return;  // NaN, or no noise could make it the best
    const double score = scaled - std::log(-std::log(uniform(key, i)));
    if (score > best) {
      best = score;
      code = i;
    }
  };
  if (choice.top_k <= 0 || choice.top_k >= vocab) {
    for (int i = 0; i < vocab; ++i) consider(i);
  } else {
    keep_largest(logits, vocab, choice.top_k);
    for (const int i : kept_) consider(i);
  }
  return code;
}

}  // namespace csm
