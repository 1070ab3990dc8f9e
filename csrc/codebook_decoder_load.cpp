// Loading of the codebook decoder: check every tensor, then pack each once.
#include <cmath>
#include <stdexcept>
#include <string>

#include "codebook_decoder.h"

namespace csm {
namespace {

std::vector<float> vector_of(const TensorSource *tensor) {
  const int n = static_cast<int>(tensor->shape[0]);
  std::vector<float> out(static_cast<std::size_t>(n));
  dequantise_row(tensor->type, tensor->data, n, out.data());
  return out;
}

struct LayerSources {
  const TensorSource *attn_norm, *q, *k, *v, *o, *ffn_norm, *gate, *up, *down;
};

LayerSources take_layer(TensorReader &reader, const DecoderConfig &c, int layer) {
  const std::string prefix = "blk." + std::to_string(layer) + ".";
  return {reader.take(prefix + "attn_norm.weight", {c.width}),
          reader.take(prefix + "attn_q.weight", {c.q_width(), c.width}),
          reader.take(prefix + "attn_k.weight", {c.kv_width(), c.width}),
          reader.take(prefix + "attn_v.weight", {c.kv_width(), c.width}),
          reader.take(prefix + "attn_output.weight", {c.width, c.q_width()}),
          reader.take(prefix + "ffn_norm.weight", {c.width}),
          reader.take(prefix + "ffn_gate.weight", {c.ffn, c.width}),
          reader.take(prefix + "ffn_up.weight", {c.ffn, c.width}),
          reader.take(prefix + "ffn_down.weight", {c.width, c.ffn})};
}

void check_config(const DecoderConfig &c) {
  const struct {
    const char *name;
    int value;
  } sizes[] = {{"layers", c.layers},     {"width", c.width}, {"heads", c.heads},
               {"kv_heads", c.kv_heads}, {"head_dim", c.head_dim}, {"ffn", c.ffn},
               {"vocab", c.vocab},       {"input_width", c.input_width}};
  for (const auto &size : sizes)
    if (size.value < 1)
      throw std::invalid_argument(std::string(size.name) + " must be at least 1, not " + std::to_string(size.value));
  if (c.codebooks < 2) throw std::invalid_argument("codebooks must be at least 2, not " + std::to_string(c.codebooks));
  if (c.head_dim % 2 != 0) throw std::invalid_argument("head_dim must be even, not " + std::to_string(c.head_dim));
  if (c.heads % c.kv_heads != 0)
    throw std::invalid_argument("heads (" + std::to_string(c.heads) + ") must be a multiple of kv_heads (" +
                                std::to_string(c.kv_heads) + ")");
  if (!(c.rope_theta > 0) || !(c.norm_eps >= 0)) throw std::invalid_argument("rope_theta and norm_eps must be positive");
}

// Angle of pair i at position p: p theta^(-2 i / head_dim) / divisor[i] (Su et al. 2021; llama.cpp's rope_freqs).
void rotation_table(const DecoderConfig &c, const std::vector<float> &divisors, DecoderWeights &weights) {
  const int pairs = c.head_dim / 2;
  for (int position = 0; position < c.codebooks; ++position)
    for (int i = 0; i < pairs; ++i) {
      const double angle = position * std::pow(c.rope_theta, -2.0 * i / c.head_dim) / divisors[static_cast<std::size_t>(i)];
      weights.cosines.push_back(static_cast<float>(std::cos(angle)));
      weights.sines.push_back(static_cast<float>(std::sin(angle)));
    }
}

std::size_t packed_bytes(const TensorSource *tensor, int rows, int cols) {
  return WeightArena::packed_bytes(tensor->type, rows, cols);
}

}  // namespace

CodebookDecoder::CodebookDecoder(const DecoderConfig &config, const TensorMap &tensors, std::shared_ptr<ThreadPool> pool,
                                 const KernelTable &kernels)
    : config_(config), pool_(std::move(pool)), kernels_(kernels) {
  const DecoderConfig &c = config_;
  check_config(c);

  TensorReader reader(tensors);
  const TensorSource *embd = reader.take("audio_embd", {std::int64_t{c.codebooks} * c.vocab, c.input_width});
  const TensorSource *projection = reader.take("projection", {c.width, c.input_width});
  const TensorSource *heads = reader.take("heads", {c.codebooks - 1, c.vocab, c.width});
  const TensorSource *output_norm = reader.take("output_norm.weight", {c.width});
  const TensorSource *divisors = reader.take("rope_freqs.weight", {c.head_dim / 2}, /*optional=*/true);
  std::vector<LayerSources> sources;
  for (int layer = 0; layer < c.layers; ++layer) sources.push_back(take_layer(reader, c, layer));
  reader.check();

  const int heads_count = c.codebooks - 1;
  std::size_t bytes = packed_bytes(projection, c.width, c.input_width) +
                      packed_bytes(heads, c.vocab, c.width) * static_cast<std::size_t>(heads_count);
  for (const LayerSources &s : sources)
    bytes += packed_bytes(s.q, c.q_width(), c.width) + packed_bytes(s.k, c.kv_width(), c.width) +
             packed_bytes(s.v, c.kv_width(), c.width) + packed_bytes(s.o, c.width, c.q_width()) +
             packed_bytes(s.gate, c.ffn, c.width) + packed_bytes(s.up, c.ffn, c.width) +
             packed_bytes(s.down, c.width, c.ffn);

  DecoderWeights &w = weights_;
  w.arena.reserve(bytes);
  const auto pack = [&](const TensorSource *tensor, int rows, int cols, int first_row = 0) {
    return w.arena.pack(*tensor, first_row, rows, cols, *pool_);
  };
  for (const LayerSources &s : sources) {
    DecoderLayer layer;
    layer.attn_norm = vector_of(s.attn_norm);
    layer.q = pack(s.q, c.q_width(), c.width);
    layer.k = pack(s.k, c.kv_width(), c.width);
    layer.v = pack(s.v, c.kv_width(), c.width);
    layer.o = pack(s.o, c.width, c.q_width());
    layer.ffn_norm = vector_of(s.ffn_norm);
    layer.gate = pack(s.gate, c.ffn, c.width);
    layer.up = pack(s.up, c.ffn, c.width);
    layer.down = pack(s.down, c.width, c.ffn);
    w.layers.push_back(std::move(layer));
  }
  w.output_norm = vector_of(output_norm);
  w.projection = pack(projection, c.width, c.input_width);
  for (int head = 0; head < heads_count; ++head) w.heads.push_back(pack(heads, c.vocab, c.width, head * c.vocab));
  w.audio_embd = {embd->type, embd->shape[0], c.input_width, embd->data};
  rotation_table(c, divisors != nullptr ? vector_of(divisors) : std::vector<float>(static_cast<std::size_t>(c.head_dim / 2), 1.0f), w);
}

}  // namespace csm
