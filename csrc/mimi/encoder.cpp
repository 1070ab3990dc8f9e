#include "mimi/encoder.h"

#include <algorithm>
#include <cstring>

namespace csm::mimi {
namespace {

constexpr int kFramesPerPass = 16;

Matrix load_in_proj(TensorReader &reader, const Config &config) {
  const long dim = config.codebook_dim, width = config.width;
  const float *semantic = reader.floats("rvq.semantic.in_proj.weight", {dim, width});
  const float *acoustic = reader.floats("rvq.acoustic.in_proj.weight", {dim, width});
  if (!reader.good()) return {};
  std::vector<float> joined(semantic, semantic + dim * width);
  joined.insert(joined.end(), acoustic, acoustic + dim * width);
  return pack(joined.data(), row_major(2 * config.codebook_dim, config.width), nullptr);
}

Codebook load_codebook(TensorReader &reader, int k, const Config &config) {
  const int size = config.codebook_size, dim = config.codebook_dim;
  Codebook book = {reader.floats("rvq.codebook." + std::to_string(k), {size, dim}), {}};
  if (!reader.good()) return book;
  std::vector<float> offsets;
  for (const float *row = book.rows; row < book.rows + ptrdiff_t{size} * dim; row += dim) {
    double square = 0;
    for (int d = 0; d < dim; ++d) square += double{row[d]} * row[d];
    offsets.push_back(static_cast<float>(-square / 2));
  }
  book.scores = pack(book.rows, row_major(size, dim), offsets.data());
  return book;
}

}  // namespace

std::vector<Conv *> EncoderWeights::convs() {
  std::vector<Conv *> all = {&conv_in};
  for (EncoderBlock &block : blocks) {
    for (Residual &residual : block.residuals) all.push_back(&residual.conv1);
    all.push_back(&block.down);
  }
  all.push_back(&conv_out);
  all.push_back(&downsample);
  return all;
}

size_t EncoderState::bytes() const { return transformer.cache.bytes() + contexts.bytes(); }

Encoder::Encoder(const Config &config, const TensorMap &tensors) : config_(config) {
  config.check();
  TensorReader reader(tensors);
  EncoderWeights &w = weights_;
  int channels = config.filters;
  w.conv_in = load_conv(reader, "enc.conv_in", channels, 1, config.kernel, 1, 1, true);
  for (size_t i = 0; i < config.ratios.size(); ++i, channels *= 2) {
    const std::string at = "enc.block." + std::to_string(i);
    const int ratio = config.ratios[config.ratios.size() - 1 - i];
    w.blocks.push_back({load_residuals(reader, at, channels, config),
                        load_conv(reader, at + ".down", 2 * channels, channels, 2 * ratio, ratio, 1, true)});
  }
  w.conv_out = load_conv(reader, "enc.conv_out", config.width, channels, config.last_kernel, 1, 1, true);
  w.transformer = load_transformer(reader, "enc.tfm", config);
  w.downsample =
      load_conv(reader, "downsample", config.width, config.width, 2 * config.stride(), config.stride(), 1, false);
  w.in_proj = load_in_proj(reader, config);
  for (int k = 0; k < config.codebooks; ++k) w.codebooks.push_back(load_codebook(reader, k, config));
  reader.check();
  context_sizes_ = number_contexts(w.convs());
}

EncoderState Encoder::new_state() const {
  return {this, 0, make_state(weights_.transformer), make_contexts(context_sizes_)};
}

void Encoder::measure(bool on) {
  const std::lock_guard<std::mutex> lock(mutex_);
  profile_.measure(on);
}

ProfileResult Encoder::profile() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return profile_.result();
}

// What all workers need to know of one pass.
struct Encoder::Pass {
  TransformerState *transformer;
  Contexts *contexts;
  bool first;  // of its stream
  const float *samples;
  int frames;
  int *codes;
};

void Encoder::encode(ThreadPool &pool, EncoderState &state, const float *samples, int frames, int *codes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (frames == 0) return;
  reserve(std::min(frames, kFramesPerPass), pool.threads());
  for (int first = 0; first < frames; first += kFramesPerPass) {
    const Pass pass = {&state.transformer,
                       &state.contexts,
                       state.frames == 0,
                       samples + ptrdiff_t{first} * config_.frame_samples,
                       std::min(kFramesPerPass, frames - first),
                       codes + ptrdiff_t{first} * config_.codebooks};
    profile_.begin();
    pool.run([&](int index) { run({&pool, index, pool.threads(), &profile_}, pass); });
    profile_.end();
    state.frames += pass.frames;
  }
}

// --- one pass ------------------------------------------------------------------------------------------------------

int Encoder::steps_after(size_t blocks) const {
  int steps = config_.frame_samples;
  for (size_t b = 0; b < blocks; ++b) steps /= config_.ratios[config_.ratios.size() - 1 - b];
  return steps;
}

// The last block holds most of the weights and few steps: it runs on a whole pass, so that a weight read from memory
// serves all its frames. The blocks before hold few weights and many steps: frame by frame they stay in the cache.
size_t Encoder::sliced() const { return weights_.blocks.size() - 1; }

Signal Encoder::block_output(size_t index, int frames, Stage &stage) const {
  const Conv &down = weights_.blocks[index].down;
  return signal_at(stage.between.data(), 1, down.context(), frames * steps_after(index), down.in);
}

// Where the producer of a block's input writes, for one frame of a pass.
Outputs Encoder::input_of(size_t index, int frame, int frames, Stage &stage) {
  const std::vector<Residual> &residuals = weights_.blocks[index].residuals;
  Outputs out = block_input(residuals, block_output(index, frames, stage), stage.block);
  const int steps = steps_after(index);
  if (out.raw.base) out.raw = out.raw.slice(0, frame * steps, steps);
  out.active = out.active.slice(0, frame * steps, steps);
  return out;
}

void Encoder::reserve(int frames, int workers) {
  const EncoderWeights &w = weights_;
  const int steps = frames * config_.stride();
  scratch_.audio.need(signal_size(1, w.conv_in.context(), config_.frame_samples, 1));
  for (size_t b = 0; b < w.blocks.size(); ++b) {
    Stage &stage = b < sliced() ? scratch_.slice : scratch_.whole;
    const int count = (b < sliced() ? 1 : frames) * steps_after(b);
    const Conv &down = w.blocks[b].down;
    stage.between.need(signal_size(1, down.context(), count, down.in));
    stage.block.need(w.blocks[b].residuals, 1, count, down.in);
  }
  scratch_.tail.need(signal_size(1, w.conv_out.context(), steps, w.conv_out.in));
  scratch_.hidden.need(signal_size(1, w.downsample.context(), steps, config_.width));
  scratch_.latent.need(signal_size(1, 0, frames, config_.width));
  scratch_.rest.need(signal_size(1, 0, frames, 2 * config_.codebook_dim));
  scratch_.scores.need(signal_size(1, 0, frames, config_.codebook_size));
  scratch_.transformer.need(w.transformer, steps, workers);
}

// Residuals of a block whose input is there, then its downsampling into `out`.
void Encoder::run_block(const Worker &worker, const Pass &pass, size_t index, int frames, Stage &stage,
                        const Outputs &out) {
  const EncoderBlock &block = weights_.blocks[index];
  const Signal active = block_output(index, frames, stage);
  run_residuals(worker, block.residuals, active, block.down, &pass.contexts, stage.block, static_cast<int>(index));
  keep(worker, block.down, active, &pass.contexts);
  if (index + 1 < sliced()) {
    const EncoderBlock &next = weights_.blocks[index + 1];
    recall_active(worker, next.residuals, 0, block_output(index + 1, 1, stage), next.down, &pass.contexts, stage.block);
  }
  convolve(worker, block.down, active, out, nullptr);
  worker.finish("block.down", static_cast<int>(index));
}

void Encoder::run_slice(const Worker &worker, const Pass &pass, int frame) {
  const EncoderWeights &w = weights_;
  const Signal audio = signal_at(scratch_.audio.data(), 1, w.conv_in.context(), config_.frame_samples, 1);
  const Range share = worker.share(config_.frame_samples);
  std::copy(pass.samples + ptrdiff_t{frame} * config_.frame_samples + share.begin,
            pass.samples + ptrdiff_t{frame} * config_.frame_samples + share.end, audio.fresh_of(0) + share.begin);
  recall(worker, w.conv_in, audio, &pass.contexts);
  worker.finish("audio");

  const auto input = [&](size_t index) {
    return index < sliced() ? input_of(index, 0, 1, scratch_.slice)
                            : input_of(index, frame, pass.frames, scratch_.whole);
  };
  keep(worker, w.conv_in, audio, &pass.contexts);
  if (sliced() > 0)
    recall_active(worker, w.blocks[0].residuals, 0, block_output(0, 1, scratch_.slice), w.blocks[0].down,
                  &pass.contexts, scratch_.slice.block);
  convolve(worker, w.conv_in, audio, input(0), nullptr);
  worker.finish("conv_in");
  for (size_t b = 0; b < sliced(); ++b) run_block(worker, pass, b, 1, scratch_.slice, input(b + 1));
}

void Encoder::run(const Worker &worker, const Pass &pass) {
  const EncoderWeights &w = weights_;
  const size_t last = sliced();
  recall_active(worker, w.blocks[last].residuals, 0, block_output(last, pass.frames, scratch_.whole),
                w.blocks[last].down, &pass.contexts, scratch_.whole.block);
  for (int frame = 0; frame < pass.frames; ++frame) run_slice(worker, pass, frame);

  const int steps = pass.frames * config_.stride();
  const Signal tail = signal_at(scratch_.tail.data(), 1, w.conv_out.context(), steps, w.conv_out.in);
  const Signal hidden = signal_at(scratch_.hidden.data(), 1, w.downsample.context(), steps, config_.width);
  recall(worker, w.conv_out, tail, &pass.contexts);
  run_block(worker, pass, last, pass.frames, scratch_.whole, {{}, tail, Activation::elu, {}});
  keep(worker, w.conv_out, tail, &pass.contexts);
  convolve(worker, w.conv_out, tail, {hidden, {}, Activation::none, {}}, nullptr);
  worker.finish("conv_out");
  run_transformer(worker, w.transformer, hidden.rows(), 1, steps, &pass.transformer, scratch_.transformer);

  if (!pass.first) {
    recall(worker, w.downsample, hidden, &pass.contexts);
  } else if (worker.index == 0) {
    for (int row = 0; row < hidden.context; ++row)
      std::copy_n(hidden.fresh_of(0), hidden.channels, hidden.base + ptrdiff_t{row} * hidden.channels);
  }
  worker.finish("downsample");
  keep(worker, w.downsample, hidden, &pass.contexts);
  const Signal latent = signal_at(scratch_.latent.data(), 1, 0, pass.frames, config_.width);
  convolve(worker, w.downsample, hidden, {latent, {}, Activation::none, {}}, nullptr);
  worker.finish("downsample");
  quantise(worker, pass);
}

// --- quantiser -----------------------------------------------------------------------------------------------------

void Encoder::quantise(const Worker &worker, const Pass &pass) {
  const PackedMatrix w = weights_.in_proj.view();
  const int dims = 2 * config_.codebook_dim;
  multiply(worker,
           {&w,
            {scratch_.latent.data(), pass.frames, config_.width, 0},
            {nullptr, 1, 0, 0},
            nullptr,
            {scratch_.rest.data(), pass.frames, dims, 0},
            {nullptr, 1, 0, 0},
            Activation::none},
           pass.frames);
  worker.finish("rvq.in_proj");
  for (int k = 0; k < config_.codebooks; ++k) choose(worker, pass, k);
}

// The nearest row of codebook k, the first of equals, and what it leaves.
void Encoder::choose(const Worker &worker, const Pass &pass, int k) {
  const Codebook &book = weights_.codebooks[static_cast<size_t>(k)];
  const int dim = config_.codebook_dim, size = config_.codebook_size;
  float *rest = scratch_.rest.data() + (k < config_.semantic_codebooks ? 0 : dim);
  const PackedMatrix w = book.scores.view();
  multiply(worker,
           {&w,
            {rest, pass.frames, 2 * dim, 0},
            {nullptr, 1, 0, 0},
            nullptr,
            {scratch_.scores.data(), pass.frames, size, 0},
            {nullptr, 1, 0, 0},
            Activation::none},
           pass.frames);
  worker.finish("rvq.scores");
  const Range share = worker.share(pass.frames);
  for (int f = share.begin; f < share.end; ++f) {
    const float *scores = scratch_.scores.data() + ptrdiff_t{f} * size;
    const auto best = static_cast<int>(std::max_element(scores, scores + size) - scores);
    pass.codes[ptrdiff_t{f} * config_.codebooks + k] = best;
    const float *row = book.rows + ptrdiff_t{best} * dim;
    float *left = rest + ptrdiff_t{f} * 2 * dim;
    for (int d = 0; d < dim; ++d) left[d] -= row[d];
  }
  worker.finish("rvq.choose");
}

}  // namespace csm::mimi
