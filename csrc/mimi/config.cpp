#include "mimi/config.h"

#include <cstdint>
#include <stdexcept>
#include <string>

namespace csm::mimi {
namespace {

// Generous bounds: they keep products of sizes inside an int and a hostile file from asking for terabytes.
constexpr int kLargest = 1 << 16;
constexpr int kLongestHop = 1 << 20;

void require(bool holds, const std::string &rule) {
  if (!holds) throw std::invalid_argument("codec configuration: " + rule);
}

void in_range(const char *name, int value, int least = 1, int most = kLargest) {
  require(value >= least && value <= most, std::string(name) + " is " + std::to_string(value) + ", must be " +
                                               std::to_string(least) + " to " + std::to_string(most));
}

}  // namespace

int Config::hop() const {
  int hop = 1;
  for (int ratio : ratios) hop *= ratio;
  return hop;
}

int Config::stride() const { return frame_samples / hop(); }

void Config::check() const {
  in_range("sample_rate", sample_rate, 1, 1 << 20);
  in_range("semantic_codebooks", semantic_codebooks);
  in_range("codebooks", codebooks, semantic_codebooks, 1024);
  in_range("codebook_size", codebook_size, 1, 1 << 20);
  in_range("codebook_dim", codebook_dim);
  in_range("width", width);
  in_range("filters", filters);
  in_range("number of ratios", static_cast<int>(ratios.size()), 1, 8);
  std::int64_t product = 1;
  for (int ratio : ratios) {
    in_range("ratio", ratio, 1, 64);
    product *= ratio;  // below 64^8, which 64 bits hold
  }
  require(product <= kLongestHop, "the product of ratios is " + std::to_string(product) + ", must be at most " +
                                      std::to_string(kLongestHop));
  in_range("filters * 2^ratios", filters << ratios.size());
  in_range("kernel", kernel, 1, 255);
  in_range("residual_kernel", residual_kernel, 1, 255);
  in_range("last_kernel", last_kernel, 1, 255);
  in_range("residual_layers", residual_layers, 1, 8);
  in_range("dilation_growth", dilation_growth, 1, 8);
  in_range("compress", compress, 1, filters);
  in_range("layers", layers, 1, 256);
  in_range("heads", heads, 1, 1024);
  in_range("kv_heads", kv_heads, 1, heads);
  require(heads % kv_heads == 0, "heads must be a multiple of kv_heads");
  in_range("head_dim", head_dim, 2, 4096);
  require(head_dim % 2 == 0, "head_dim must be even, RoPE turns pairs");
  in_range("ffn", ffn);
  in_range("context", context);
  require(rope_theta > 1, "rope_theta must be above 1");
  require(norm_eps > 0, "norm_eps must be positive");
  in_range("upsample_groups", upsample_groups, 1, width);
  require(width % upsample_groups == 0, "width must be a multiple of upsample_groups");
  require(frame_samples > 0 && frame_samples % hop() == 0,
          "samples per frame (" + std::to_string(frame_samples) + ") must be a multiple of the product of ratios (" +
              std::to_string(hop()) + ")");
}

}  // namespace csm::mimi
