#include "mimi/config.h"

#include <algorithm>
#include <cstdint>

namespace csm::mimi {
namespace {

constexpr long kLargest = 1 << 16;
constexpr long kLongest = 1 << 20;  // samples or steps

void check_convolutions(Rules &rules, const Config &c) {
  rules.in_range("number of ratios", static_cast<long>(c.ratios.size()), 1, 8);
  std::int64_t hop = 1;
  for (int ratio : c.ratios) {
    rules.in_range("ratio", long{ratio}, 1, 64);
    hop = std::min<std::int64_t>(hop * std::clamp(ratio, 1, 64), kLongest + 1);
  }
  rules.require(hop <= kLongest, "the product of ratios must be at most " + std::to_string(kLongest));
  const std::size_t halvings = std::min<std::size_t>(c.ratios.size(), 16);
  rules.in_range("filters * 2^ratios", std::int64_t{c.filters} << halvings, 1, kLargest);
  rules.in_range("kernel", long{c.kernel}, 1, 255);
  rules.in_range("residual_kernel", long{c.residual_kernel}, 1, 255);
  rules.in_range("last_kernel", long{c.last_kernel}, 1, 255);
  rules.in_range("residual_layers", long{c.residual_layers}, 1, 8);
  rules.in_range("dilation_growth", long{c.dilation_growth}, 1, 8);
  rules.in_range("compress", long{c.compress}, 1, std::max(1, c.filters));
  rules.require(c.compress < 1 || c.filters % c.compress == 0, "filters must be a multiple of compress");
  rules.in_range("frame_samples", long{c.frame_samples}, 1, kLongest);
  rules.require(hop > kLongest || c.frame_samples % hop == 0, "samples per frame (" + std::to_string(c.frame_samples) +
                                                                  ") must be a multiple of the product of ratios (" +
                                                                  std::to_string(hop) + ")");
}

void check_transformer(Rules &rules, const Config &c) {
  rules.in_range("layers", long{c.layers}, 1, 256);
  rules.in_range("heads", long{c.heads}, 1, 1024);
  rules.in_range("kv_heads", long{c.kv_heads}, 1, std::max(1, c.heads));
  rules.require(c.kv_heads < 1 || c.heads % c.kv_heads == 0, "heads must be a multiple of kv_heads");
  rules.in_range("head_dim", long{c.head_dim}, 2, 4096);
  rules.require(c.head_dim % 2 == 0, "head_dim must be even: RoPE turns pairs");
  rules.in_range("ffn", long{c.ffn}, 1, kLargest);
  rules.in_range("context", long{c.context}, 1, kLargest);
  rules.in_range("rope_theta", double{c.rope_theta}, 1, kLargestRopeTheta);
  rules.in_range("norm_eps", double{c.norm_eps}, 0, 1, /*exclusive=*/true);
}

}  // namespace

int Config::hop() const {
  int hop = 1;
  for (int ratio : ratios) hop *= ratio;
  return hop;
}

int Config::stride() const { return frame_samples / hop(); }

Rules Config::rules() const {
  Rules rules;
  rules.in_range("sample_rate", long{sample_rate}, 1, kLongest);
  rules.in_range("codebooks", long{codebooks}, 2, kMostCodebooks);
  rules.in_range("semantic_codebooks", long{semantic_codebooks}, 1, std::max(1, codebooks - 1));
  rules.in_range("codebook_size", long{codebook_size}, 1, kLargestVocab);
  rules.in_range("codebook_dim", long{codebook_dim}, 1, kLargest);
  rules.in_range("width", long{width}, 1, kLargest);
  rules.in_range("filters", long{filters}, 1, kLargest);
  check_convolutions(rules, *this);
  check_transformer(rules, *this);
  rules.in_range("upsample_groups", long{upsample_groups}, 1, std::max(1, width));
  rules.require(upsample_groups < 1 || width % upsample_groups == 0, "width must be a multiple of upsample_groups");
  return rules;
}

}  // namespace csm::mimi
