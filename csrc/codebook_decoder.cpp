#include "codebook_decoder.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace csm {
namespace {

constexpr int kTeacherStreams = 8;  // frames that logits() runs at once, to bound its memory

bool quantised(const PanelMatrix &matrix) { return type_info(matrix.type)->quantised; }

bool any_quantised(std::initializer_list<const PanelMatrix *> matrices) {
  return std::any_of(matrices.begin(), matrices.end(), [](const PanelMatrix *m) { return quantised(*m); });
}

}  // namespace

void Activations::resize(int columns, int n) {
  cols = columns;
  stride = (columns + kGroup - 1) / kGroup * kGroup;
  f32.resize(static_cast<std::size_t>(stride) * static_cast<std::size_t>(n));
  blocks.resize(static_cast<std::size_t>(columns / kBlock) * static_cast<std::size_t>(n));
}

void CodebookDecoder::resize(int streams, int steps) {
  if (streams <= streams_ && streams * steps <= vectors_) return;
  streams_ = std::max(streams, streams_);
  vectors_ = std::max(streams * steps, vectors_);
  const DecoderConfig &c = config_;
  DecoderState &s = state_;
  const int n = vectors_;
  const auto cache = static_cast<std::size_t>(c.layers) * static_cast<std::size_t>(streams_) *
                     static_cast<std::size_t>(c.codebooks) * static_cast<std::size_t>(c.kv_width());
  s.keys.resize(cache);
  s.values.resize(cache);
  s.input.resize(c.input_width, n);
  s.x.resize(c.width, n);
  s.normed.resize(c.width, n);
  s.q.resize(c.q_width(), n);
  s.k.resize(c.kv_width(), n);
  s.v.resize(c.kv_width(), n);
  s.attended.resize(c.q_width(), n);
  s.sum.resize(c.width, n);
  s.gate.resize(c.ffn, n);
  s.up.resize(c.ffn, n);
  s.hidden.resize(c.ffn, n);
  s.last.resize(c.width, streams_);
  s.logits.resize(c.vocab, streams_);
  s.scores.resize(static_cast<std::size_t>(members()) * static_cast<std::size_t>(c.codebooks));
}

void CodebookDecoder::decode_frames(int streams, const float *hidden, const float *c0_logits, Sampler *const *samplers,
                                    std::int32_t *codes) {
  if (streams < 1) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  resize(streams, 2);
  lapping_ = measuring_;
  last_lap_ = std::chrono::steady_clock::now();
  pool_->run([&](int member) {
    // The hidden state and code 0 go in together; every later code alone. The last code is never fed.
    Span span{streams, 2, 0};
    draw(member, streams, c0_logits, config_.vocab, samplers, 0, codes);
    pool_->barrier();
    lap(member, &DecoderParts::sampling);
    put_hidden(member, span, hidden);
    put_embeddings(member, span, 1, 0, codes);
    for (int codebook = 1; codebook < config_.codebooks; ++codebook) {
      project(member, span);
      lap(member, &DecoderParts::projection);
      run_layers(member, span, weights_.heads[static_cast<std::size_t>(codebook - 1)]);
      head(member, span, span.steps - 1, codebook);
      lap(member, &DecoderParts::heads);
      draw(member, streams, state_.logits.f32.data(), state_.logits.stride, samplers, codebook, codes);
      if (codebook + 1 < config_.codebooks) pool_->barrier();
      lap(member, &DecoderParts::sampling);
      if (codebook + 1 == config_.codebooks) break;
      span = {streams, 1, codebook + 1};
      put_embeddings(member, span, 0, codebook, codes);
    }
  });
  lapping_ = false;
}

void CodebookDecoder::measure(bool on) {
  const std::lock_guard<std::mutex> lock(mutex_);
  measuring_ = on;
  if (on) parts_ = {};
}

DecoderParts CodebookDecoder::parts() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return parts_;
}

void CodebookDecoder::lap(int member, double DecoderParts::*part) {
  if (!lapping_ || member != 0) return;
  const auto now = std::chrono::steady_clock::now();
  parts_.*part += std::chrono::duration<double>(now - last_lap_).count();
  last_lap_ = now;
}

void CodebookDecoder::logits(int streams, const float *hidden, const std::int32_t *codes, float *out) {
  const DecoderConfig &c = config_;
  for (int i = 0; i < streams * c.codebooks; ++i)
    if (codes[i] < 0 || codes[i] >= c.vocab)
      throw std::invalid_argument("code " + std::to_string(codes[i]) + " is outside 0.." + std::to_string(c.vocab - 1));
  const std::lock_guard<std::mutex> lock(mutex_);
  for (int first = 0; first < streams; first += kTeacherStreams) {
    const Span span{std::min(kTeacherStreams, streams - first), c.codebooks, 0};
    resize(span.streams, span.steps);
    const std::int32_t *span_codes = codes + static_cast<std::ptrdiff_t>(first) * c.codebooks;
    pool_->run([&](int member) {
      put_hidden(member, span, hidden + static_cast<std::ptrdiff_t>(first) * c.input_width);
      for (int step = 1; step < span.steps; ++step) put_embeddings(member, span, step, step - 1, span_codes);
      project(member, span);
      run_layers(member, span, weights_.heads[0]);
      for (int codebook = 1; codebook < c.codebooks; ++codebook) {
        head(member, span, codebook, codebook);
        const Range mine = share(span.streams, member, members());
        for (int b = mine.begin; b < mine.end; ++b) {
          const std::ptrdiff_t place = static_cast<std::ptrdiff_t>(first + b) * (c.codebooks - 1) + codebook - 1;
          std::copy_n(state_.logits.row(b), c.vocab, out + place * c.vocab);
        }
        pool_->barrier();
      }
    });
  }
}

// ---- inputs and outputs ----

void CodebookDecoder::put_hidden(int member, const Span &span, const float *hidden) {
  const Range mine = share(span.streams, member, members());
  for (int b = mine.begin; b < mine.end; ++b)
    std::copy_n(hidden + static_cast<std::ptrdiff_t>(b) * config_.input_width, config_.input_width,
                state_.input.row(b * span.steps));
}

void CodebookDecoder::put_embeddings(int member, const Span &span, int step, int codebook, const std::int32_t *codes) {
  const Range mine = share(span.streams, member, members());
  for (int b = mine.begin; b < mine.end; ++b) {
    const std::int64_t code = codes[static_cast<std::ptrdiff_t>(b) * config_.codebooks + codebook];
    weights_.audio_embd.row(code + std::int64_t{codebook} * config_.vocab, state_.input.row(b * span.steps + step));
  }
}

void CodebookDecoder::draw(int member, int streams, const float *logits, std::ptrdiff_t stride, Sampler *const *samplers,
                           int codebook, std::int32_t *codes) {
  const Range mine = share(streams, member, members());
  for (int b = mine.begin; b < mine.end; ++b)
    codes[static_cast<std::ptrdiff_t>(b) * config_.codebooks + codebook] =
        samplers[b]->sample(logits + b * stride, config_.vocab, codebook);
}

void CodebookDecoder::project(int member, const Span &span) {
  const PanelMatrix &matrix = weights_.projection;
  pool_->barrier();
  if (quantised(matrix)) {
    round(member, span.vectors(), state_.input);
    pool_->barrier();
  }
  // Straight into the residual stream: its rows are panels wide.
  multiply(member, matrix, weights_.layers[0].q, state_.input, span.vectors(), state_.x);
  pool_->barrier();
}

void CodebookDecoder::head(int member, const Span &span, int step, int codebook) {
  const PanelMatrix &matrix = weights_.heads[static_cast<std::size_t>(codebook - 1)];
  normalise(member, span.streams, step, span.steps, weights_.output_norm, quantised(matrix), state_.last);
  pool_->barrier();
  multiply(member, matrix, weights_.projection, state_.last, span.streams, state_.logits);
  pool_->barrier();
}

// ---- the tower ----

// `after`: the head that reads the result, prefetched in time.
void CodebookDecoder::run_layers(int member, const Span &span, const PanelMatrix &after) {
  DecoderState &s = state_;
  const int n = span.vectors();
  for (std::size_t index = 0; index < weights_.layers.size(); ++index) {
    const DecoderLayer &layer = weights_.layers[index];
    const bool last = index + 1 == weights_.layers.size();
    normalise(member, n, 0, 1, layer.attn_norm, any_quantised({&layer.q, &layer.k, &layer.v}), s.normed);
    pool_->barrier();
    attention_inputs(member, span, static_cast<int>(index));
    pool_->barrier();
    attend(member, span, static_cast<int>(index));
    pool_->barrier();
    if (quantised(layer.o)) {
      round(member, n, s.attended);
      pool_->barrier();
    }
    add_product(member, n, layer.o, layer.gate, s.attended);
    pool_->barrier();
    lap(member, &DecoderParts::attention);
    normalise(member, n, 0, 1, layer.ffn_norm, any_quantised({&layer.gate, &layer.up}), s.normed);
    pool_->barrier();
    feed_forward(member, span, layer);
    pool_->barrier();
    add_product(member, n, layer.down, last ? after : weights_.layers[index + 1].q, s.hidden);
    pool_->barrier();
    lap(member, &DecoderParts::feed_forward);
  }
}

// Queries, keys and values; a member rotates and stores the rows that it has computed.
void CodebookDecoder::attention_inputs(int member, const Span &span, int layer_index) {
  const DecoderLayer &layer = weights_.layers[static_cast<std::size_t>(layer_index)];
  DecoderState &s = state_;
  const int n = span.vectors();
  const Range q_rows = multiply(member, layer.q, layer.k, s.normed, n, s.q);
  const Range kv_rows = multiply(member, layer.k, layer.v, s.normed, n, s.k);
  multiply(member, layer.v, layer.o, s.normed, n, s.v);
  for (int vector = 0; vector < n; ++vector) {
    const int stream = vector / span.steps, position = span.position + vector % span.steps;
    rotate(s.q.row(vector), q_rows.begin, q_rows.end, position, s.q.row(vector));
    rotate(s.k.row(vector), kv_rows.begin, kv_rows.end, position, cached(s.keys, layer_index, stream, position));
    std::copy(s.v.row(vector) + kv_rows.begin, s.v.row(vector) + kv_rows.end,
              cached(s.values, layer_index, stream, position) + kv_rows.begin);
  }
}

// attended = softmax(q k^T / sqrt(head_dim)) v over the positions up to the vector's own, one head of a stream at a time.
void CodebookDecoder::attend(int member, const Span &span, int layer) {
  const DecoderConfig &c = config_;
  DecoderState &s = state_;
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  float *scores = s.scores.data() + static_cast<std::ptrdiff_t>(member) * c.codebooks;
  const Range mine = share(span.streams * c.heads, member, members());
  for (int unit = mine.begin; unit < mine.end; ++unit) {
    const int stream = unit / c.heads, head = unit % c.heads;
    const std::ptrdiff_t kv = std::ptrdiff_t{head / (c.heads / c.kv_heads)} * c.head_dim;
    for (int step = 0; step < span.steps; ++step) {
      const int count = span.position + step + 1;
      const float *query = s.q.row(stream * span.steps + step) + static_cast<std::ptrdiff_t>(head) * c.head_dim;
      for (int j = 0; j < count; ++j)
        scores[j] = scale * kernels_.dot(query, cached(s.keys, layer, stream, j) + kv, c.head_dim);
      kernels_.softmax(scores, count);
      float *out = s.attended.row(stream * span.steps + step) + static_cast<std::ptrdiff_t>(head) * c.head_dim;
      std::fill_n(out, c.head_dim, 0.0f);
      for (int j = 0; j < count; ++j)
        kernels_.add_scaled(scores[j], cached(s.values, layer, stream, j) + kv, c.head_dim, out);
    }
  }
}

// hidden = silu(gate x) * (up x); a member's rows are whole blocks, so that it can round what it has made.
void CodebookDecoder::feed_forward(int member, const Span &span, const DecoderLayer &layer) {
  DecoderState &s = state_;
  const int n = span.vectors();
  multiply(member, layer.gate, layer.up, s.normed, n, s.gate);
  const Range rows = multiply(member, layer.up, layer.down, s.normed, n, s.up);
  const int count = rows.end - rows.begin;
  if (count == 0) return;
  for (int vector = 0; vector < n; ++vector) {
    float *out = s.hidden.row(vector) + rows.begin;
    kernels_.silu_mul(s.gate.row(vector) + rows.begin, s.up.row(vector) + rows.begin, count, out);
    if (quantised(layer.down))
      kernels_.quantise(out, count / kBlock, &s.hidden.blocks[static_cast<std::size_t>(rows.begin / kBlock * n + vector)], n);
  }
}

// ---- between the products ----

// out[i] = the norm of residual vector first + i * pitch, for the member's share of i < n.
void CodebookDecoder::normalise(int member, int n, int first, int pitch, const std::vector<float> &weight, bool rounded,
                                Activations &out) {
  const Range mine = share(n, member, members());
  for (int i = mine.begin; i < mine.end; ++i) {
    kernels_.rms_norm(state_.x.row(first + i * pitch), weight.data(), config_.width, config_.norm_eps, out.row(i));
    if (rounded) kernels_.quantise(out.row(i), config_.width / kBlock, &out.blocks[static_cast<std::size_t>(i)], n);
  }
}

void CodebookDecoder::round(int member, int n, Activations &in) {
  const Range mine = share(n, member, members());
  for (int i = mine.begin; i < mine.end; ++i)
    kernels_.quantise(in.row(i), in.cols / kBlock, &in.blocks[static_cast<std::size_t>(i)], n);
}

// The member's share of a matrix: whole pairs of panels, which are the blocks of a product that takes their rows.
Range CodebookDecoder::panels_of(int member, const PanelMatrix &matrix) const {
  return share(matrix.groups(), member, members(), kBlock / kGroup);
}

Range CodebookDecoder::multiply(int member, const PanelMatrix &matrix, const PanelMatrix &next, const Activations &in,
                                int n, Activations &out) {
  const Range groups = panels_of(member, matrix);
  const std::uint8_t *then = next.panels + next.panel_bytes * static_cast<std::size_t>(panels_of(member, next).begin);
  if (quantised(matrix))
    kernels_.product_quantised(matrix, groups.begin, groups.end, in.blocks.data(), n, out.f32.data(), out.stride, then);
  else
    kernels_.product_float(matrix, groups.begin, groups.end, in.f32.data(), in.stride, n, out.f32.data(), out.stride,
                           then);
  return {std::min(groups.begin * kGroup, matrix.rows), std::min(groups.end * kGroup, matrix.rows)};
}

// Residual stream += matrix in.
void CodebookDecoder::add_product(int member, int n, const PanelMatrix &matrix, const PanelMatrix &next,
                                  const Activations &in) {
  const Range rows = multiply(member, matrix, next, in, n, state_.sum);
  for (int vector = 0; vector < n; ++vector)
    kernels_.add_scaled(1.0f, state_.sum.row(vector) + rows.begin, rows.end - rows.begin, state_.x.row(vector) + rows.begin);
}

// Turns the pairs (r, r + 1) of rows [row_begin, row_end), both even, by the angles of a position.
void CodebookDecoder::rotate(const float *in, int row_begin, int row_end, int position, float *out) const {
  const int pairs = config_.head_dim / 2;
  const float *cosines = weights_.cosines.data() + static_cast<std::ptrdiff_t>(position) * pairs;
  const float *sines = weights_.sines.data() + static_cast<std::ptrdiff_t>(position) * pairs;
  for (int r = row_begin; r < row_end; r += 2) {
    const int pair = r % config_.head_dim / 2;
    const float a = in[r], b = in[r + 1];
    out[r] = a * cosines[pair] - b * sines[pair];
    out[r + 1] = a * sines[pair] + b * cosines[pair];
  }
}

float *CodebookDecoder::cached(std::vector<float> &cache, int layer, int stream, int position) {
  const std::ptrdiff_t place =
      (static_cast<std::ptrdiff_t>(layer) * streams_ + stream) * config_.codebooks + position;
  return cache.data() + place * config_.kv_width();
}

}  // namespace csm
