// Loading of a tower: check every tensor, then pack each once.
#include <cmath>
#include <string>

#include "llama_tower.h"

namespace csm {
namespace {

std::vector<float> vector_of(const TensorSource &tensor) {
  const int n = static_cast<int>(tensor.shape[0]);
  std::vector<float> out(static_cast<std::size_t>(n));
  dequantise_row(tensor.type, tensor.data, n, out.data());
  return out;
}

std::size_t packed_bytes(const TensorSource *tensor) {
  return WeightArena::packed_bytes(tensor->type, static_cast<int>(tensor->shape[0]),
                                   static_cast<int>(tensor->shape[1]));
}

}  // namespace

Rules TowerConfig::rules() const {
  constexpr long kWidest = 1 << 20;
  Rules rules;
  rules.in_range("layers", long{layers}, 1, 512);
  rules.in_range("width", long{width}, 1, kWidest);
  rules.in_range("heads", long{heads}, 1, 4096);
  rules.in_range("kv_heads", long{kv_heads}, 1, 4096);
  rules.require(
      kv_heads < 1 || heads % kv_heads == 0,
      "heads (" + std::to_string(heads) + ") must be a multiple of kv_heads (" + std::to_string(kv_heads) + ")");
  rules.in_range("head_dim", long{head_dim}, 2, 4096);
  rules.require(head_dim % 2 == 0, "head_dim must be even, not " + std::to_string(head_dim));
  rules.in_range("ffn", long{ffn}, 1, kWidest);
  rules.in_range("norm_eps", double{norm_eps}, 0, 1, /*exclusive=*/true);
  rules.in_range("rope_theta", rope_theta, 1, kLargestRopeTheta);
  rules.in_range("positions", long{positions}, 1, 1 << 17);
  return rules;
}

TowerSources TowerSources::take(TensorReader &reader, const TowerConfig &c) {
  TowerSources out;
  for (int layer = 0; layer < c.layers; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    out.layers.push_back({reader.take(prefix + "attn_norm.weight", {c.width}),
                          reader.take(prefix + "attn_q.weight", {c.q_width(), c.width}),
                          reader.take(prefix + "attn_k.weight", {c.kv_width(), c.width}),
                          reader.take(prefix + "attn_v.weight", {c.kv_width(), c.width}),
                          reader.take(prefix + "attn_output.weight", {c.width, c.q_width()}),
                          reader.take(prefix + "ffn_norm.weight", {c.width}),
                          reader.take(prefix + "ffn_gate.weight", {c.ffn, c.width}),
                          reader.take(prefix + "ffn_up.weight", {c.ffn, c.width}),
                          reader.take(prefix + "ffn_down.weight", {c.width, c.ffn})});
  }
  out.output_norm = reader.take("output_norm.weight", {c.width});
  out.divisors = reader.take("rope_freqs.weight", {c.head_dim / 2}, /*optional=*/true);
  return out;
}

LlamaTower::LlamaTower(const TowerConfig &config, const TowerSources &sources, ThreadPool &pool,
                       const KernelTable &kernels)
    : config_(config), matmul_(pool, kernels), kernels_(kernels) {
  std::size_t bytes = 0;
  for (const TowerSources::Layer &s : sources.layers)
    for (const TensorSource *matrix : {s.q, s.k, s.v, s.o, s.gate, s.up, s.down}) bytes += packed_bytes(matrix);
  arena_.reserve(bytes);
  const auto pack = [&](const TensorSource *tensor) {
    return arena_.pack(*tensor, 0, static_cast<int>(tensor->shape[0]), static_cast<int>(tensor->shape[1]), pool);
  };
  for (const TowerSources::Layer &s : sources.layers) {
    TowerLayer layer;
    layer.attn_norm = vector_of(*s.attn_norm);
    layer.q = pack(s.q);
    layer.k = pack(s.k);
    layer.v = pack(s.v);
    layer.o = pack(s.o);
    layer.ffn_norm = vector_of(*s.ffn_norm);
    layer.gate = pack(s.gate);
    layer.up = pack(s.up);
    layer.down = pack(s.down);
    layers_.push_back(std::move(layer));
  }
  output_norm_ = vector_of(*sources.output_norm);
  const std::vector<float> ones(static_cast<std::size_t>(config_.head_dim / 2), 1.0f);
  make_rotation(sources.divisors != nullptr ? vector_of(*sources.divisors) : ones);
}

// Angle of pair i at position p: p theta^(-2 i / head_dim) / divisor[i] (Su et al. 2021; llama.cpp's rope_freqs).
void LlamaTower::make_rotation(const std::vector<float> &divisors) {
  const int pairs = config_.head_dim / 2;
  std::vector<double> frequencies;
  for (int i = 0; i < pairs; ++i)
    frequencies.push_back(std::pow(config_.rope_theta, -2.0 * i / config_.head_dim) /
                          divisors[static_cast<std::size_t>(i)]);
  for (int position = 0; position < config_.positions; ++position)
    for (const double frequency : frequencies) {
      cosines_.push_back(static_cast<float>(std::cos(position * frequency)));
      sines_.push_back(static_cast<float>(std::sin(position * frequency)));
    }
}

}  // namespace csm
