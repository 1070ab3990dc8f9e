#include "mimi/transformer.h"

#include <algorithm>
#include <cmath>

namespace csm::mimi {
namespace {

Buffer load_vector(TensorReader &reader, const std::string &name, int n) {
  const float *from = reader.floats(name, {n});
  if (!from) return {};
  Buffer out(static_cast<size_t>(n));
  std::copy_n(from, n, out.data());
  return out;
}

const float *find(TensorReader &reader, const std::string &name, const TensorReader::Shape &shape, const float *) {
  return reader.floats(name, shape);
}
const uint16_t *find(TensorReader &reader, const std::string &name, const TensorReader::Shape &shape,
                     const uint16_t *) {
  return reader.halves(name, shape);
}

// The rows of several linear maps of `in` inputs as one matrix, all in the precision `Weight`.
template <class Weight>
Matrix join(TensorReader &reader, const std::vector<std::pair<std::string, long>> &parts, long in) {
  std::vector<Weight> rows;
  for (const auto &[name, out] : parts) {
    const Weight *from = find(reader, name + ".weight", {out, in}, static_cast<const Weight *>(nullptr));
    if (from && reader.good()) rows.insert(rows.end(), from, from + out * in);
  }
  if (!reader.good()) return {};
  return pack(rows.data(), row_major(static_cast<int>(static_cast<long>(rows.size()) / in), static_cast<int>(in)),
              nullptr);
}

// In half precision where the first of them is.
Matrix load_linear(TensorReader &reader, const std::vector<std::pair<std::string, long>> &parts, long in) {
  return reader.has(parts.front().first + ".weight", TensorType::f16) ? join<uint16_t>(reader, parts, in)
                                                                      : join<float>(reader, parts, in);
}

const float *row(const Rows &rows, int r) {
  return rows.base + (r / rows.per_block) * rows.block_stride + (r % rows.per_block) * rows.row_stride;
}

Rows plain(Buffer &buffer, int rows, int width) { return {buffer.data(), rows, width, 0}; }
ConstRows readable(const Rows &rows) { return {rows.base, rows.per_block, rows.row_stride, rows.block_stride}; }

struct Call {
  const Worker &worker;
  const Transformer &t;
  Rows x;
  int streams;
  int steps;
  TransformerState *const *states;
  TransformerScratch &scratch;

  int rows() const { return streams * steps; }
};

void normalise(const Call &call, const Buffer &weight, const Buffer &bias) {
  const Range share = call.worker.share(call.rows());
  for (int r = share.begin; r < share.end; ++r)
    dense_kernels().layer_norm(row(call.x, r), weight.data(), bias.data(), call.t.norm_eps, call.t.width,
                               call.scratch.normed.data() + ptrdiff_t{r} * call.t.width);
  call.worker.finish("transformer.norm");
}

void linear(const Call &call, const Matrix &matrix, const Rows &from, const Rows &to, Activation activation,
            const char *stage) {
  const PackedMatrix w = matrix.view();
  const Rows nowhere = {nullptr, 1, 0, 0};
  const bool plain_output = activation == Activation::none;
  multiply(call.worker,
           {&w,
            readable(from),
            {nullptr, 1, 0, 0},
            nullptr,
            plain_output ? to : nowhere,
            plain_output ? nowhere : to,
            activation},
           call.rows());
  call.worker.finish(stage);
}

// x += scale * matrix(from)
void add_linear(const Call &call, const Matrix &matrix, const Rows &from, const Buffer &scale, const char *stage) {
  const PackedMatrix w = matrix.view();
  multiply(call.worker,
           {&w, readable(from), readable(call.x), scale.data(), call.x, {nullptr, 1, 0, 0}, Activation::none},
           call.rows());
  call.worker.finish(stage);
}

// Cosines and sines of every row's position. The angle is a float product of a float frequency, as moshi has it
// (modules/rope.py): far into a stream its rounding is part of the reference's result.
void find_turns(const Call &call) {
  const int pairs = call.t.head_dim / 2;
  const Range share = call.worker.share(call.rows());
  for (int r = share.begin; r < share.end; ++r) {
    const auto position = static_cast<float>(call.states[r / call.steps]->position + r % call.steps);
    float *turns = call.scratch.turns.data() + ptrdiff_t{r} * pairs * 2;
    for (int i = 0; i < pairs; ++i) {
      const float angle = call.t.frequencies[static_cast<size_t>(i)] * position;
      turns[2 * i] = std::cos(angle);
      turns[2 * i + 1] = std::sin(angle);
    }
  }
}

void rotate(float *x, const float *turns, int head_dim) {
  for (int i = 0; i < head_dim; i += 2) {
    const float real = x[i], imaginary = x[i + 1];
    x[i] = real * turns[i] - imaginary * turns[i + 1];
    x[i + 1] = real * turns[i + 1] + imaginary * turns[i];
  }
}

// All steps of one key-value head of one stream, in order: a step's key takes the place of the step that has just
// left its context, so the ring needs no more room than the context.
void attend_head(const Call &call, int layer, int stream, int kv_head) {
  const Transformer &t = call.t;
  const int group = t.heads / t.kv_heads, hd = t.head_dim, key_stride = t.key_stride(), value_stride = t.value_stride();
  TransformerState &state = *call.states[stream];
  const Range rows = {kv_head * hd, (kv_head + 1) * hd};
  float *scores = call.scratch.heads.data() + ptrdiff_t{call.worker.index} * (key_stride + value_stride);
  for (int step = 0; step < call.steps; ++step) {
    const ptrdiff_t r = ptrdiff_t{stream} * call.steps + step;
    const long position = state.position + step;
    const auto place = static_cast<int>(position % t.context);
    const float *turns = call.scratch.turns.data() + r * hd;
    float *q = call.scratch.qkv.data() + r * t.qkv_width() + ptrdiff_t{kv_head} * group * hd;
    float *keys = call.scratch.qkv.data() + r * t.qkv_width() + ptrdiff_t{t.heads} * hd;
    rotate(keys + rows.begin, turns, hd);
    state.cache.store_keys(layer, place, rows, keys);
    state.cache.store_values(layer, place, rows, keys + ptrdiff_t{t.kv_heads} * hd);
    const auto count = static_cast<int>(std::min<long>(position + 1, t.context));
    for (int g = 0; g < group; ++g, q += hd) {
      rotate(q, turns, hd);
      dense_kernels().attend({q, state.cache.keys(layer, kv_head), state.cache.values(layer, kv_head), scores,
                              scores + key_stride, hd, count, key_stride, value_stride,
                              1 / std::sqrt(static_cast<float>(hd))});
      std::copy_n(scores + key_stride, hd,
                  call.scratch.attended.data() + r * t.heads * hd + ptrdiff_t{kv_head * group + g} * hd);
    }
  }
}

void attention(const Call &call, int layer) {
  const Range share = call.worker.share(call.streams * call.t.kv_heads);
  for (int item = share.begin; item < share.end; ++item) {
    const int stream = item / call.t.kv_heads;
    attend_head(call, layer, stream, item % call.t.kv_heads);
  }
  call.worker.finish("transformer.attention");
}

}  // namespace

Transformer load_transformer(TensorReader &reader, const std::string &name, const Config &config) {
  Transformer t;
  t.width = config.width;
  t.heads = config.heads;
  t.kv_heads = config.kv_heads;
  t.head_dim = config.head_dim;
  t.ffn = config.ffn;
  t.context = config.context;
  t.norm_eps = config.norm_eps;
  const float step = -std::log(config.rope_theta) * 2 / static_cast<float>(config.head_dim);
  for (int i = 0; i < config.head_dim / 2; ++i) t.frequencies.push_back(std::exp(static_cast<float>(i) * step));
  const long queries = t.heads * t.head_dim, keys = t.kv_heads * t.head_dim;
  for (int l = 0; l < config.layers; ++l) {
    const std::string at = name + "." + std::to_string(l);
    TransformerLayer layer;
    layer.attn_norm_weight = load_vector(reader, at + ".attn_norm.weight", t.width);
    layer.attn_norm_bias = load_vector(reader, at + ".attn_norm.bias", t.width);
    layer.qkv =
        load_linear(reader, {{at + ".attn_q", queries}, {at + ".attn_k", keys}, {at + ".attn_v", keys}}, t.width);
    layer.attn_out = load_linear(reader, {{at + ".attn_out", t.width}}, queries);
    layer.attn_scale = load_vector(reader, at + ".attn_scale", t.width);
    layer.ffn_norm_weight = load_vector(reader, at + ".ffn_norm.weight", t.width);
    layer.ffn_norm_bias = load_vector(reader, at + ".ffn_norm.bias", t.width);
    layer.ffn_up = load_linear(reader, {{at + ".ffn_up", t.ffn}}, t.width);
    layer.ffn_down = load_linear(reader, {{at + ".ffn_down", t.width}}, t.ffn);
    layer.ffn_scale = load_vector(reader, at + ".ffn_scale", t.width);
    t.layers.push_back(std::move(layer));
  }
  return t;
}

TransformerState make_state(const Transformer &t) {
  return {0, KvCache({static_cast<int>(t.layers.size()), t.kv_heads, t.head_dim, t.context, t.key_stride(),
                      t.value_stride()})};
}

void TransformerScratch::need(const Transformer &t, int rows, int workers) {
  const auto n = static_cast<size_t>(rows);
  normed.need(n * static_cast<size_t>(t.width));
  qkv.need(n * static_cast<size_t>(t.qkv_width()));
  attended.need(n * static_cast<size_t>(t.heads * t.head_dim));
  hidden.need(n * static_cast<size_t>(t.ffn));
  turns.need(n * static_cast<size_t>(t.head_dim));
  heads.need(static_cast<size_t>(workers) * static_cast<size_t>(t.key_stride() + t.value_stride()));
}

void run_transformer(const Worker &worker, const Transformer &t, const Rows &x, int streams, int steps,
                     TransformerState *const *states, TransformerScratch &scratch) {
  const Call call = {worker, t, x, streams, steps, states, scratch};
  const Rows normed = plain(scratch.normed, call.rows(), t.width);
  const Rows qkv = plain(scratch.qkv, call.rows(), t.qkv_width());
  const Rows attended = plain(scratch.attended, call.rows(), t.heads * t.head_dim);
  const Rows hidden = plain(scratch.hidden, call.rows(), t.ffn);
  find_turns(call);
  for (size_t l = 0; l < t.layers.size(); ++l) {
    const TransformerLayer &layer = t.layers[l];
    normalise(call, layer.attn_norm_weight, layer.attn_norm_bias);
    linear(call, layer.qkv, normed, qkv, Activation::none, "transformer.qkv");
    attention(call, static_cast<int>(l));
    add_linear(call, layer.attn_out, attended, layer.attn_scale, "transformer.attn_out");
    normalise(call, layer.ffn_norm_weight, layer.ffn_norm_bias);
    linear(call, layer.ffn_up, normed, hidden, Activation::gelu, "transformer.ffn_up");
    add_linear(call, layer.ffn_down, hidden, layer.ffn_scale, "transformer.ffn_down");
  }
  if (worker.index == 0)
    for (int s = 0; s < streams; ++s) states[s]->position += steps;
  worker.finish("transformer.norm");
}

}  // namespace csm::mimi
