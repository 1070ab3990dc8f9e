// Loading of the depth decoder: check every tensor, then pack each once.
#include <string>

#include "depth_decoder.h"

namespace csm {

Rules DepthDecoderConfig::rules() const {
  Rules rules = tower.rules();
  rules.in_range("vocab", long{vocab}, 1, kLargestVocab);
  rules.in_range("input_width", long{input_width}, 1, 1 << 20);
  rules.in_range("codebooks", long{codebooks}, 2, kMostCodebooks);
  rules.require(tower.positions >= codebooks, "positions must be at least codebooks (" + std::to_string(codebooks) +
                                                  "), not " + std::to_string(tower.positions));
  return rules;
}

DepthDecoder::DepthDecoder(const DepthDecoderConfig &config, const TensorMap &tensors, std::shared_ptr<ThreadPool> pool,
                           const KernelTable &kernels)
    : config_(config), pool_(std::move(pool)), matmul_(*pool_, kernels) {
  const DepthDecoderConfig &c = config_;
  c.rules().check("depth decoder configuration");

  TensorReader reader(tensors);
  const TensorSource *embd = reader.take("audio_embd", {std::int64_t{c.codebooks} * c.vocab, c.input_width});
  const TensorSource *projection = reader.take("projection", {c.tower.width, c.input_width});
  const TensorSource *heads = reader.take("heads", {c.codebooks - 1, c.vocab, c.tower.width});
  const TowerSources sources = TowerSources::take(reader, c.tower);
  reader.check();

  tower_ = std::make_unique<LlamaTower>(c.tower, sources, *pool_, kernels);
  arena_.reserve(WeightArena::packed_bytes(projection->type, c.tower.width, c.input_width) +
                 WeightArena::packed_bytes(heads->type, c.vocab, c.tower.width) *
                     static_cast<std::size_t>(c.codebooks - 1));
  projection_ = arena_.pack(*projection, 0, c.tower.width, c.input_width, *pool_);
  for (int head = 0; head + 1 < c.codebooks; ++head)
    heads_.push_back(arena_.pack(*heads, std::int64_t{head} * c.vocab, c.vocab, c.tower.width, *pool_));
  audio_embd_ = {embd->type, embd->shape[0], c.input_width, embd->data};
}

}  // namespace csm
