#include "depth_decoder.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace csm {
namespace {

constexpr int kTeacherSlots = 8;  // frames that logits() runs at once, to bound its memory

}  // namespace

void DepthDecoder::reserve(int slots, int steps) {
  const TowerConfig &tower = config_.tower;
  KvSizes sizes = tower.kv_sizes();
  sizes.positions = config_.codebooks;  // of a frame, which may be fewer than the tower has
  while (static_cast<int>(caches_.size()) < slots) caches_.emplace_back(sizes);
  if (slots > slots_) {
    last_.resize(tower.width, slots);
    logits_.resize(config_.vocab, slots);
    slots_ = slots;  // last: where memory runs out, there is no room for more than before
  }
  if (slots * steps > vectors_) {
    tower_->reserve(slots * steps);
    input_.resize(config_.input_width, slots * steps);
    vectors_ = slots * steps;
  }
}

void DepthDecoder::set_spans(const Steps &steps) {
  spans_.clear();
  read_.clear();
  for (int b = 0; b < steps.slots; ++b)
    spans_.push_back({&caches_[static_cast<std::size_t>(b)], steps.position, b * steps.count, steps.count});
  for (int step = 0; step < steps.count; ++step)
    for (int b = 0; b < steps.slots; ++b) read_.push_back(b * steps.count + step);
}

void DepthDecoder::decode_frames(int slots, const float *hidden, const float *c0_logits, Sampler *const *samplers,
                                 std::int32_t *codes) {
  if (slots < 1) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  // The hidden state and code 0 are fed together, every later code alone, and the last one not at all.
  const Steps first{slots, 2, 0};
  reserve(slots, first.count);
  for (int b = 0; b < slots; ++b) samplers[b]->reserve(config_.vocab);
  set_spans(first);
  profile_.begin();
  pool_->run(
      [&](int worker) {
        Steps steps = first;
        draw(worker, slots, c0_logits, config_.vocab, samplers, 0, codes);
        pool_->barrier();
        profile_.end_stage(worker, "sampling");
        put_hidden(worker, steps, hidden);
        put_embeddings(worker, steps, 1, 0, codes);
        for (int codebook = 1; codebook < config_.codebooks; ++codebook) {
          project(worker, steps);
          profile_.end_stage(worker, "projection");
          run_tower(worker, steps, codebook);
          head(worker, steps, steps.count - 1, codebook);
          profile_.end_stage(worker, "heads");
          draw(worker, slots, logits_.f32.data(), logits_.stride, samplers, codebook, codes);
          if (codebook + 1 < config_.codebooks || profile_.on()) pool_->barrier();
          profile_.end_stage(worker, "sampling");
          if (codebook + 1 == config_.codebooks) break;
          steps = {slots, 1, codebook + 1};
          if (worker == 0) set_spans(steps);
          put_embeddings(worker, steps, 0, codebook, codes);
        }
      },
      profile_.waits());
  profile_.end();
}

void DepthDecoder::logits(int slots, const float *hidden, const std::int32_t *codes, float *out) {
  const DepthDecoderConfig &c = config_;
  for (int i = 0; i < slots * c.codebooks; ++i)
    if (codes[i] < 0 || codes[i] >= c.vocab)
      throw std::invalid_argument("code " + std::to_string(codes[i]) + " is outside 0.." + std::to_string(c.vocab - 1));
  const std::lock_guard<std::mutex> lock(mutex_);
  for (int first = 0; first < slots; first += kTeacherSlots) {
    const Steps steps{std::min(kTeacherSlots, slots - first), c.codebooks, 0};
    reserve(steps.slots, steps.count);
    set_spans(steps);
    const std::int32_t *part_codes = codes + static_cast<std::ptrdiff_t>(first) * c.codebooks;
    pool_->run([&](int worker) {
      put_hidden(worker, steps, hidden + static_cast<std::ptrdiff_t>(first) * c.input_width);
      for (int step = 1; step < steps.count; ++step) put_embeddings(worker, steps, step, step - 1, part_codes);
      project(worker, steps);
      run_tower(worker, steps, 1);
      for (int codebook = 1; codebook < c.codebooks; ++codebook) {
        head(worker, steps, codebook, codebook);
        const Range mine = matmul_.vectors_of(worker, steps.slots);
        for (int b = mine.begin; b < mine.end; ++b) {
          const std::ptrdiff_t place = static_cast<std::ptrdiff_t>(first + b) * (c.codebooks - 1) + codebook - 1;
          std::copy_n(logits_.row(b), c.vocab, out + place * c.vocab);
        }
        pool_->barrier();
      }
    });
  }
}

void DepthDecoder::measure(bool on) {
  const std::lock_guard<std::mutex> lock(mutex_);
  profile_.measure(on);
}

ProfileResult DepthDecoder::profile() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return profile_.result();
}

void DepthDecoder::put_hidden(int worker, const Steps &steps, const float *hidden) {
  const Range mine = matmul_.vectors_of(worker, steps.slots);
  for (int b = mine.begin; b < mine.end; ++b)
    std::copy_n(hidden + static_cast<std::ptrdiff_t>(b) * config_.input_width, config_.input_width,
                input_.row(b * steps.count));
}

void DepthDecoder::put_embeddings(int worker, const Steps &steps, int step, int codebook, const std::int32_t *codes) {
  const Range mine = matmul_.vectors_of(worker, steps.slots);
  for (int b = mine.begin; b < mine.end; ++b) {
    const std::int64_t code = codes[static_cast<std::ptrdiff_t>(b) * config_.codebooks + codebook];
    audio_embd_.row(code + std::int64_t{codebook} * config_.vocab, input_.row(b * steps.count + step));
  }
}

void DepthDecoder::draw(int worker, int slots, const float *logits, std::ptrdiff_t stride, Sampler *const *samplers,
                        int codebook, std::int32_t *codes) {
  const Range mine = matmul_.vectors_of(worker, slots);
  for (int b = mine.begin; b < mine.end; ++b)
    codes[static_cast<std::ptrdiff_t>(b) * config_.codebooks + codebook] =
        samplers[b]->sample(logits + b * stride, config_.vocab, codebook);
}

void DepthDecoder::project(int worker, const Steps &steps) {
  pool_->barrier();
  if (quantised(projection_)) {
    matmul_.round(worker, steps.vectors(), input_);
    pool_->barrier();
  }
  // Straight into the residual stream: its rows are panels wide.
  matmul_.multiply(worker, projection_, tower_->first_matrix(), input_, steps.vectors(), tower_->residual());
  pool_->barrier();
}

void DepthDecoder::run_tower(int worker, const Steps &steps, int codebook) {
  tower_->forward(worker, spans_, steps.vectors(), heads_[static_cast<std::size_t>(codebook - 1)], profile_);
}

// The logits of a codebook, from one step of every slot.
void DepthDecoder::head(int worker, const Steps &steps, int step, int codebook) {
  const PanelMatrix &matrix = heads_[static_cast<std::size_t>(codebook - 1)];
  tower_->final_norm(worker, steps.slots, read_.data() + static_cast<std::ptrdiff_t>(step) * steps.slots,
                     quantised(matrix), last_);
  pool_->barrier();
  matmul_.multiply(worker, matrix, projection_, last_, steps.slots, logits_);
  pool_->barrier();
}

}  // namespace csm
