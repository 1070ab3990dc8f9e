#include "backbone.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace csm {
namespace {

// Vectors in one pass of the tower: more gain nothing, since the weights' reading hides behind the products by then.
constexpr int kPass = 64;

}  // namespace

Backbone::Backbone(const TowerConfig &config, int vocab, int slots, const TensorMap &tensors,
                   std::shared_ptr<ThreadPool> pool, const KernelTable &kernels)
    : pool_(std::move(pool)), matmul_(*pool_, kernels) {
  Rules rules = config.rules();
  rules.in_range("vocab", long{vocab}, 1, kLargestVocab);
  rules.in_range("slots", long{slots}, 1, INT32_MAX);
  rules.check("backbone configuration");
  TensorReader reader(tensors);
  const TensorSource *head = reader.take("output.weight", {vocab, config.width});
  const TowerSources sources = TowerSources::take(reader, config);
  reader.check();
  KvCache::check_memory(slots, config.kv_sizes());

  tower_ = std::make_unique<LlamaTower>(config, sources, *pool_, kernels);
  arena_.reserve(WeightArena::packed_bytes(head->type, vocab, config.width));
  head_ = arena_.pack(*head, 0, vocab, config.width, *pool_);
  for (int i = 0; i < slots; ++i) caches_.emplace_back(config.kv_sizes());
  lengths_.resize(static_cast<std::size_t>(slots));
}

void Backbone::decode(int n, const float *embeddings, const std::int32_t *position, const std::int32_t *slot,
                      const bool *wanted, float *hidden, float *logits) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check(n, position, slot);
  framed_ = std::all_of(wanted, wanted + n, [](bool asked) { return asked; });
  std::vector<int> before = lengths_;
  try {
    reserve(std::min(n, kPass),
            static_cast<int>(std::min<std::ptrdiff_t>(kPass, std::count(wanted, wanted + n, true))));
    for (int begin = 0; begin < n; begin += kPass) {
      const int end = std::min(begin + kPass, n);
      set_spans(begin, end, slot, wanted);
      run(end - begin, embeddings + static_cast<std::ptrdiff_t>(begin) * config().width, hidden, logits);
      hidden += static_cast<std::ptrdiff_t>(read_.size()) * config().width;
      logits += static_cast<std::ptrdiff_t>(read_.size()) * vocab();
    }
  } catch (...) {
    lengths_.swap(before);
    throw;
  }
}

void Backbone::reserve(int n, int m) {
  tower_->reserve(n);
  if (m <= wanted_) return;
  last_.resize(config().width, m);
  logits_.resize(vocab(), m);
  wanted_ = m;  // last: where memory runs out, there is no room for more than before
}

void Backbone::check_slot(int slot) const {
  if (slot < 0 || slot >= slots())
    throw std::invalid_argument("slot " + std::to_string(slot) + " is outside 0.." + std::to_string(slots() - 1));
}

void Backbone::check(int n, const std::int32_t *position, const std::int32_t *slot) const {
  std::vector<int> lengths = lengths_;
  for (int i = 0; i < n; ++i) {
    check_slot(slot[i]);
    int &length = lengths[static_cast<std::size_t>(slot[i])];
    if (position[i] != length)
      throw std::invalid_argument("the next position of slot " + std::to_string(slot[i]) + " is " +
                                  std::to_string(length) + ", not " + std::to_string(position[i]));
    if (++length > config().positions)
      throw std::length_error("slot " + std::to_string(slot[i]) + " is full: it holds " +
                              std::to_string(config().positions) + " positions");
  }
}

void Backbone::set_spans(int begin, int end, const std::int32_t *slot, const bool *wanted) {
  spans_.clear();
  read_.clear();
  for (int i = begin; i < end; ++i) {
    if (i > begin && slot[i] == slot[i - 1]) {
      ++spans_.back().count;
    } else {
      const auto own = static_cast<std::size_t>(slot[i]);
      spans_.push_back({&caches_[own], lengths_[own], i - begin, 1});
    }
    ++lengths_[static_cast<std::size_t>(slot[i])];
    if (wanted[i]) read_.push_back(i - begin);
  }
}

void Backbone::run(int n, const float *embeddings, float *hidden, float *logits) {
  const int m = static_cast<int>(read_.size());
  profile_.begin(framed_);
  pool_->run(
      [&](int worker) {
        const Range mine = matmul_.vectors_of(worker, n);
        for (int i = mine.begin; i < mine.end; ++i)
          std::copy_n(embeddings + static_cast<std::ptrdiff_t>(i) * config().width, config().width,
                      tower_->residual().row(i));
        pool_->barrier();
        tower_->forward(worker, spans_, n, head_, profile_);
        if (m > 0) finish(worker, m, hidden, logits);
        if (profile_.on()) pool_->barrier();
        profile_.end_stage(worker, "head");
      },
      profile_.waits());
  profile_.end();
}

// The final norm and the head of the wanted vectors.
void Backbone::finish(int worker, int m, float *hidden, float *logits) {
  tower_->final_norm(worker, m, read_.data(), quantised(head_), last_);
  pool_->barrier();
  matmul_.multiply(worker, head_, tower_->first_matrix(), last_, m, logits_, [&](Range rows) {
    for (int i = 0; i < m; ++i)
      std::copy(logits_.row(i) + rows.begin, logits_.row(i) + rows.end,
                logits + static_cast<std::ptrdiff_t>(i) * vocab() + rows.begin);
  });
  const Range mine = matmul_.vectors_of(worker, m);
  for (int i = mine.begin; i < mine.end; ++i)
    std::copy_n(last_.row(i), config().width, hidden + static_cast<std::ptrdiff_t>(i) * config().width);
}

void Backbone::forget(int slot) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_slot(slot);
  lengths_[static_cast<std::size_t>(slot)] = 0;
}

std::size_t Backbone::saved_floats(int count) const {
  if (count < 0 || count > config().positions)
    throw std::invalid_argument(std::to_string(count) + " positions are outside 0.." +
                                std::to_string(config().positions));
  return caches_[0].saved_floats(count);
}

void Backbone::save(int slot, int count, float *out) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_slot(slot);
  const auto own = static_cast<std::size_t>(slot);
  if (count > lengths_[own])
    throw std::invalid_argument("slot " + std::to_string(slot) + " holds " + std::to_string(lengths_[own]) +
                                " positions, not " + std::to_string(count));
  caches_[own].save(count, out);
}

void Backbone::restore(int slot, int count, const float *saved) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_slot(slot);
  const auto own = static_cast<std::size_t>(slot);
  if (lengths_[own] != 0)
    throw std::invalid_argument("slot " + std::to_string(slot) + " is not empty: it holds " +
                                std::to_string(lengths_[own]) + " positions");
  caches_[own].restore(count, saved);
  lengths_[own] = count;
}

void Backbone::measure(bool on) {
  const std::lock_guard<std::mutex> lock(mutex_);
  profile_.measure(on);
}

ProfileResult Backbone::profile() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return profile_.result();
}

}  // namespace csm
