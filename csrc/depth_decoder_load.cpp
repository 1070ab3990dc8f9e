// Loading of the depth decoder: check every tensor, then pack each once.
#include <stdexcept>
#include <string>

#include "depth_decoder.h"

namespace csm {

void DepthDecoderConfig::check() const {
  tower.check();
  check_size("vocab", vocab);
  check_size("input_width", input_width);
  if (codebooks < 2) throw std::invalid_argument("codebooks must be at least 2, not " + std::to_string(codebooks));
  if (tower.positions < codebooks)
    throw std::invalid_argument("positions must be at least codebooks (" + std::to_string(codebooks) + "), not " +
                                std::to_string(tower.positions));
}

DepthDecoder::DepthDecoder(const DepthDecoderConfig &config, const TensorMap &tensors, std::shared_ptr<ThreadPool> pool,
                                 const KernelTable &kernels)
    : config_(config), pool_(std::move(pool)), matmul_(*pool_, kernels) {
  const DepthDecoderConfig &c = config_;
  c.check();

  TensorReader reader(tensors);
  const TensorSource *embd = reader.take("audio_embd", {std::int64_t{c.codebooks} * c.vocab, c.input_width});
  const TensorSource *projection = reader.take("projection", {c.tower.width, c.input_width});
  const TensorSource *heads = reader.take("heads", {c.codebooks - 1, c.vocab, c.tower.width});
  const TowerSources sources = TowerSources::take(reader, c.tower);
  reader.check();

  tower_ = std::make_unique<LlamaTower>(c.tower, sources, *pool_, kernels);
  arena_.reserve(WeightArena::packed_bytes(projection->type, c.tower.width, c.input_width) +
                 WeightArena::packed_bytes(heads->type, c.vocab, c.tower.width) * static_cast<std::size_t>(c.codebooks - 1));
  projection_ = arena_.pack(*projection, 0, c.tower.width, c.input_width, *pool_);
  for (int head = 0; head + 1 < c.codebooks; ++head)
    heads_.push_back(arena_.pack(*heads, std::int64_t{head} * c.vocab, c.vocab, c.tower.width, *pool_));
  audio_embd_ = {embd->type, embd->shape[0], c.input_width, embd->data};
}

}  // namespace csm
