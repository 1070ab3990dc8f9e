#include "codebook_decoder.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace csm {
namespace {

constexpr int kTeacherStreams = 8;  // frames that logits() runs at once, to bound its memory

}  // namespace

void CodebookDecoder::reserve(int streams, int steps) {
  const TowerConfig &tower = config_.tower;
  KvSizes sizes = tower.kv_sizes();
  sizes.positions = config_.codebooks;  // of a frame, which may be fewer than the tower has
  while (static_cast<int>(caches_.size()) < streams) caches_.emplace_back(sizes);
  if (streams > streams_) {
    last_.resize(tower.width, streams);
    logits_.resize(config_.vocab, streams);
    streams_ = streams;  // last: where memory runs out, there is no room for more than before
  }
  if (streams * steps > vectors_) {
    tower_->reserve(streams * steps);
    input_.resize(config_.input_width, streams * steps);
    vectors_ = streams * steps;
  }
}

void CodebookDecoder::set_spans(const Steps &steps) {
  spans_.clear();
  read_.clear();
  for (int b = 0; b < steps.streams; ++b)
    spans_.push_back({&caches_[static_cast<std::size_t>(b)], steps.position, b * steps.count, steps.count});
  for (int step = 0; step < steps.count; ++step)
    for (int b = 0; b < steps.streams; ++b) read_.push_back(b * steps.count + step);
}

void CodebookDecoder::decode_frames(int streams, const float *hidden, const float *c0_logits, Sampler *const *samplers,
                                    std::int32_t *codes) {
  if (streams < 1) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  // The hidden state and code 0 go in together; every later code alone. The last code is never fed.
  const Steps first{streams, 2, 0};
  reserve(streams, first.count);
  for (int b = 0; b < streams; ++b) samplers[b]->reserve(config_.vocab);
  set_spans(first);
  profile_.begin();
  pool_->run([&](int member) {
    Steps steps = first;
    draw(member, streams, c0_logits, config_.vocab, samplers, 0, codes);
    pool_->barrier();
    profile_.end_stage(member, "sampling");
    put_hidden(member, steps, hidden);
    put_embeddings(member, steps, 1, 0, codes);
    for (int codebook = 1; codebook < config_.codebooks; ++codebook) {
      project(member, steps);
      profile_.end_stage(member, "projection");
      run_tower(member, steps, codebook);
      head(member, steps, steps.count - 1, codebook);
      profile_.end_stage(member, "heads");
      draw(member, streams, logits_.f32.data(), logits_.stride, samplers, codebook, codes);
      if (codebook + 1 < config_.codebooks || profile_.on()) pool_->barrier();
      profile_.end_stage(member, "sampling");
      if (codebook + 1 == config_.codebooks) break;
      steps = {streams, 1, codebook + 1};
      if (member == 0) set_spans(steps);
      put_embeddings(member, steps, 0, codebook, codes);
    }
  }, profile_.waits());
  profile_.end();
}

void CodebookDecoder::logits(int streams, const float *hidden, const std::int32_t *codes, float *out) {
  const DecoderConfig &c = config_;
  for (int i = 0; i < streams * c.codebooks; ++i)
    if (codes[i] < 0 || codes[i] >= c.vocab)
      throw std::invalid_argument("code " + std::to_string(codes[i]) + " is outside 0.." + std::to_string(c.vocab - 1));
  const std::lock_guard<std::mutex> lock(mutex_);
  for (int first = 0; first < streams; first += kTeacherStreams) {
    const Steps steps{std::min(kTeacherStreams, streams - first), c.codebooks, 0};
    reserve(steps.streams, steps.count);
    set_spans(steps);
    const std::int32_t *part_codes = codes + static_cast<std::ptrdiff_t>(first) * c.codebooks;
    pool_->run([&](int member) {
      put_hidden(member, steps, hidden + static_cast<std::ptrdiff_t>(first) * c.input_width);
      for (int step = 1; step < steps.count; ++step) put_embeddings(member, steps, step, step - 1, part_codes);
      project(member, steps);
      run_tower(member, steps, 1);
      for (int codebook = 1; codebook < c.codebooks; ++codebook) {
        head(member, steps, codebook, codebook);
        const Range mine = matmul_.vectors_of(member, steps.streams);
        for (int b = mine.begin; b < mine.end; ++b) {
          const std::ptrdiff_t place = static_cast<std::ptrdiff_t>(first + b) * (c.codebooks - 1) + codebook - 1;
          std::copy_n(logits_.row(b), c.vocab, out + place * c.vocab);
        }
        pool_->barrier();
      }
    });
  }
}

void CodebookDecoder::measure(bool on) {
  const std::lock_guard<std::mutex> lock(mutex_);
  profile_.measure(on);
}

ProfileResult CodebookDecoder::profile() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return profile_.result();
}

void CodebookDecoder::put_hidden(int member, const Steps &steps, const float *hidden) {
  const Range mine = matmul_.vectors_of(member, steps.streams);
  for (int b = mine.begin; b < mine.end; ++b)
    std::copy_n(hidden + static_cast<std::ptrdiff_t>(b) * config_.input_width, config_.input_width,
                input_.row(b * steps.count));
}

void CodebookDecoder::put_embeddings(int member, const Steps &steps, int step, int codebook, const std::int32_t *codes) {
  const Range mine = matmul_.vectors_of(member, steps.streams);
  for (int b = mine.begin; b < mine.end; ++b) {
    const std::int64_t code = codes[static_cast<std::ptrdiff_t>(b) * config_.codebooks + codebook];
    audio_embd_.row(code + std::int64_t{codebook} * config_.vocab, input_.row(b * steps.count + step));
  }
}

void CodebookDecoder::draw(int member, int streams, const float *logits, std::ptrdiff_t stride, Sampler *const *samplers,
                           int codebook, std::int32_t *codes) {
  const Range mine = matmul_.vectors_of(member, streams);
  for (int b = mine.begin; b < mine.end; ++b)
    codes[static_cast<std::ptrdiff_t>(b) * config_.codebooks + codebook] =
        samplers[b]->sample(logits + b * stride, config_.vocab, codebook);
}

void CodebookDecoder::project(int member, const Steps &steps) {
  pool_->barrier();
  if (quantised(projection_)) {
    matmul_.round(member, steps.vectors(), input_);
    pool_->barrier();
  }
  // Straight into the residual stream: its rows are panels wide.
  matmul_.multiply(member, projection_, tower_->first_matrix(), input_, steps.vectors(), tower_->stream());
  pool_->barrier();
}

void CodebookDecoder::run_tower(int member, const Steps &steps, int codebook) {
  tower_->forward(member, spans_, steps.vectors(), heads_[static_cast<std::size_t>(codebook - 1)], profile_);
}

// The logits of a codebook, from one step of every stream.
void CodebookDecoder::head(int member, const Steps &steps, int step, int codebook) {
  const PanelMatrix &matrix = heads_[static_cast<std::size_t>(codebook - 1)];
  tower_->final_norm(member, steps.streams, read_.data() + static_cast<std::ptrdiff_t>(step) * steps.streams,
                     quantised(matrix), last_);
  pool_->barrier();
  matmul_.multiply(member, matrix, projection_, last_, steps.streams, logits_);
  pool_->barrier();
}

}  // namespace csm
