#include "llama_tower.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

namespace csm {
namespace {

constexpr int kTile = 32;  // queries that attention multiplies by the keys at once, to bound its scratch

bool any_quantised(std::initializer_list<const PanelMatrix *> matrices) {
  return std::any_of(matrices.begin(), matrices.end(), [](const PanelMatrix *m) { return quantised(*m); });
}

int whole_panels(int rows) { return (rows + kGroup - 1) / kGroup * kGroup; }

}  // namespace

void LlamaTower::reserve(int n) {
  if (n <= vectors_) return;
  const TowerConfig &c = config_;
  x_.resize(c.width, n);
  normed_.resize(c.width, n);
  q_.resize(c.q_width(), n);
  k_.resize(c.kv_width(), n);
  v_.resize(c.kv_width(), n);
  attended_.resize(c.q_width(), n);
  sum_.resize(c.width, n);
  gate_.resize(c.ffn, n);
  up_.resize(c.ffn, n);
  hidden_.resize(c.ffn, n);
  scratch_.resize(static_cast<std::size_t>(matmul_.workers()));
  const auto tile = static_cast<std::size_t>(std::max(kTile, c.heads / c.kv_heads));
  for (Scratch &s : scratch_) {
    s.queries.resize(tile * static_cast<std::size_t>(c.head_dim));
    s.scores.resize(tile * static_cast<std::size_t>(whole_panels(c.positions)));
    s.sums.resize(tile * static_cast<std::size_t>(whole_panels(c.head_dim)));
  }
  vectors_ = n;  // last: where memory runs out, there is no room for more than before
}

void LlamaTower::forward(int worker, const std::vector<TowerSpan> &spans, int n, const PanelMatrix &after,
                         Profile &profile) {
  for (std::size_t index = 0; index < layers_.size(); ++index) {
    const TowerLayer &layer = layers_[index];
    const bool last = index + 1 == layers_.size();
    normalise(worker, n, nullptr, layer.attn_norm, any_quantised({&layer.q, &layer.k, &layer.v}), normed_);
    matmul_.barrier();
    attention_inputs(worker, spans, n, static_cast<int>(index));
    matmul_.barrier();
    attend(worker, spans, static_cast<int>(index));
    matmul_.barrier();
    if (quantised(layer.o)) {
      matmul_.round(worker, n, attended_);
      matmul_.barrier();
    }
    add_matmul(worker, n, layer.o, layer.gate, attended_);
    matmul_.barrier();
    profile.end_stage(worker, "attention");
    normalise(worker, n, nullptr, layer.ffn_norm, any_quantised({&layer.gate, &layer.up}), normed_);
    matmul_.barrier();
    feed_forward(worker, n, layer);
    matmul_.barrier();
    add_matmul(worker, n, layer.down, last ? after : layers_[index + 1].q, hidden_);
    matmul_.barrier();
    profile.end_stage(worker, "feed_forward");
  }
}

void LlamaTower::final_norm(int worker, int n, const int *vectors, bool rounded, Activations &out) {
  normalise(worker, n, vectors, output_norm_, rounded, out);
}

// ---- attention ----

// Queries, keys and values; a worker rotates and stores the rows that it has computed.
void LlamaTower::attention_inputs(int worker, const std::vector<TowerSpan> &spans, int n, int layer_index) {
  const TowerLayer &layer = layers_[static_cast<std::size_t>(layer_index)];
  const auto each_vector = [&](const auto &work) {
    for (const TowerSpan &span : spans)
      for (int step = 0; step < span.count; ++step) work(*span.cache, span.first + step, span.position + step);
  };
  matmul_.multiply(worker, layer.q, layer.k, normed_, n, q_, [&](Range rows) {
    each_vector([&](KvCache &, int vector, int position) { rotate(q_.row(vector), rows, position); });
  });
  matmul_.multiply(worker, layer.k, layer.v, normed_, n, k_, [&](Range rows) {
    each_vector([&](KvCache &cache, int vector, int position) {
      rotate(k_.row(vector), rows, position);
      cache.store_keys(layer_index, position, rows, k_.row(vector));
    });
  });
  matmul_.multiply(worker, layer.v, layer.o, normed_, n, v_, [&](Range rows) {
    each_vector([&](KvCache &cache, int vector, int position) {
      cache.store_values(layer_index, position, rows, v_.row(vector));
    });
  });
}

PanelMatrix LlamaTower::keys(const KvCache &cache, int layer, int head, int count) const {
  return {TensorType::f32, count, config_.head_dim, static_cast<std::size_t>(config_.head_dim) * kLine,
          reinterpret_cast<const std::uint8_t *>(cache.keys(layer, head))};
}

PanelMatrix LlamaTower::values(const KvCache &cache, int layer, int head, int count) const {
  return {TensorType::f32, config_.head_dim, count, static_cast<std::size_t>(cache.sizes().positions) * kLine,
          reinterpret_cast<const std::uint8_t *>(cache.values(layer, head))};
}

// Units of work: the query heads of one key head in one span, or single heads where there are too few for all workers.
void LlamaTower::attend(int worker, const std::vector<TowerSpan> &spans, int layer) {
  const TowerConfig &c = config_;
  const int sharing = c.heads / c.kv_heads;
  const int heads = static_cast<int>(spans.size()) * c.kv_heads >= matmul_.workers() ? sharing : 1;
  const int units = c.heads / heads;
  const Range mine = share(static_cast<int>(spans.size()) * units, worker, matmul_.workers());
  for (int unit = mine.begin; unit < mine.end; ++unit)
    attend_heads(worker, spans[static_cast<std::size_t>(unit / units)], layer, unit % units * heads, heads);
}

void LlamaTower::attend_heads(int worker, const TowerSpan &span, int layer, int first_head, int heads) {
  const int steps = std::max(1, kTile / heads);
  for (int step = 0; step < span.count; step += steps)
    attend_tile(worker, span, layer, first_head, heads, step, std::min(steps, span.count - step));
}

// attended = softmax(q k^T / sqrt(head_dim)) v over the positions up to each vector's own, as two products with the
// cache. Weights beyond a vector's own position are zero, which changes no bit of its sums while all values are finite.
void LlamaTower::attend_tile(int worker, const TowerSpan &span, int layer, int first_head, int heads, int step,
                             int steps) {
  const int dim = config_.head_dim, sum_stride = whole_panels(dim);
  const int kv_head = first_head / (config_.heads / config_.kv_heads);
  const int count = span.position + step + steps, stride = whole_panels(count), n = steps * heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  Scratch &s = scratch_[static_cast<std::size_t>(worker)];
  const auto own = [&](std::vector<float> &values, int i, int row) {
    return values.data() + static_cast<std::ptrdiff_t>(i) * row;
  };
  for (int i = 0; i < n; ++i) {
    const float *query =
        q_.row(span.first + step + i / heads) + static_cast<std::ptrdiff_t>(first_head + i % heads) * dim;
    float *out = own(s.queries, i, dim);
    for (int d = 0; d < dim; ++d) out[d] = scale * query[d];
  }
  const PanelMatrix keys = this->keys(*span.cache, layer, kv_head, count),
                    values = this->values(*span.cache, layer, kv_head, count);
  kernels_.matmul_float(keys, 0, keys.groups(), s.queries.data(), dim, n, s.scores.data(), stride, values.panels);
  for (int i = 0; i < n; ++i) {
    const int seen = span.position + step + i / heads + 1;
    float *scores = own(s.scores, i, stride);
    kernels_.softmax(scores, seen);
    std::fill(scores + seen, scores + count, 0.0f);
  }
  kernels_.matmul_float(values, 0, values.groups(), s.scores.data(), stride, n, s.sums.data(), sum_stride, keys.panels);
  for (int i = 0; i < n; ++i)
    std::copy_n(
        own(s.sums, i, sum_stride), dim,
        attended_.row(span.first + step + i / heads) + static_cast<std::ptrdiff_t>(first_head + i % heads) * dim);
}

// Turns the pairs (r, r + 1) of some rows, which begin and end evenly, by the angles of a position.
void LlamaTower::rotate(float *vector, Range rows, int position) const {
  const int pairs = config_.head_dim / 2;
  const float *cosines = cosines_.data() + static_cast<std::ptrdiff_t>(position) * pairs;
  const float *sines = sines_.data() + static_cast<std::ptrdiff_t>(position) * pairs;
  each_head(rows, config_.head_dim, [&](int head, int first, int last) {
    float *own = vector + std::ptrdiff_t{head} * config_.head_dim;
    for (int r = first; r < last; r += 2) {
      const float a = own[r], b = own[r + 1], cosine = cosines[r / 2], sine = sines[r / 2];
      own[r] = a * cosine - b * sine;
      own[r + 1] = a * sine + b * cosine;
    }
  });
}

// ---- feed-forward, and between the products ----

// hidden = silu(gate x) * (up x); chunks are whole blocks, so that a worker can round what it has made.
void LlamaTower::feed_forward(int worker, int n, const TowerLayer &layer) {
  const bool rounded = quantised(layer.down);
  matmul_.multiply_pair(worker, layer.gate, layer.up, layer.down, normed_, n, gate_, up_, [&](Range rows) {
    const int count = rows.end - rows.begin;
    for (int vector = 0; vector < n; ++vector) {
      float *out = hidden_.row(vector) + rows.begin;
      kernels_.silu_mul(gate_.row(vector) + rows.begin, up_.row(vector) + rows.begin, count, out);
      if (rounded)
        kernels_.quantise(out, count / kBlock,
                          &hidden_.blocks[static_cast<std::size_t>(rows.begin / kBlock * n + vector)], n);
    }
  });
}

// out[i] = the norm of residual vector vectors[i] (i where null), for the worker's share of i < n.
void LlamaTower::normalise(int worker, int n, const int *vectors, const std::vector<float> &weight, bool rounded,
                           Activations &out) {
  const Range mine = matmul_.vectors_of(worker, n);
  for (int i = mine.begin; i < mine.end; ++i) {
    kernels_.rms_norm(x_.row(vectors == nullptr ? i : vectors[i]), weight.data(), config_.width, config_.norm_eps,
                      out.row(i));
    if (rounded) kernels_.quantise(out.row(i), config_.width / kBlock, &out.blocks[static_cast<std::size_t>(i)], n);
  }
}

// Residual stream += matrix in.
void LlamaTower::add_matmul(int worker, int n, const PanelMatrix &matrix, const PanelMatrix &next,
                            const Activations &in) {
  matmul_.multiply(worker, matrix, next, in, n, sum_, [&](Range rows) {
    for (int vector = 0; vector < n; ++vector)
      kernels_.add_scaled(1.0f, sum_.row(vector) + rows.begin, rows.end - rows.begin, x_.row(vector) + rows.begin);
  });
}

}  // namespace csm
