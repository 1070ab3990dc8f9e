#include "mimi/decoder.h"

#include <algorithm>

namespace csm::mimi {
namespace {

// Frames of all streams that go through the weight-heavy stages at once: enough rows to reuse a weight read from
// memory, few enough for the activations to stay in the cache.
constexpr int kFramesPerPass = 32;

// The first blocks have most of the weights and few steps: they run on a whole pass. The later ones have few weights
// and many steps: they run frame by frame, so that their activations stay in the cache.
constexpr size_t kWholeBlocks = 1;

DecoderBlock load_block(TensorReader &reader, const Config &config, int index, int channels) {
  const std::string at = "dec.block." + std::to_string(index);
  DecoderBlock block;
  block.up =
      load_transposed(reader, at + ".up", channels, channels / 2, config.ratios[static_cast<size_t>(index)], 1, true);
  block.residuals = load_residuals(reader, at, channels / 2, config);
  return block;
}

void load_quantizer(DecoderWeights &w, TensorReader &reader, const Config &config) {
  const long size = config.codebook_size, dim = config.codebook_dim, width = config.width;
  for (int k = 0; k < config.codebooks; ++k)
    w.codebooks.push_back(reader.floats("rvq.codebook." + std::to_string(k), {size, dim}));
  const float *semantic = reader.floats("rvq.semantic.out_proj.weight", {width, dim});
  const float *acoustic = reader.floats("rvq.acoustic.out_proj.weight", {width, dim});
  if (!reader.good()) return;
  std::vector<float> joined;
  for (long n = 0; n < width; ++n) {
    joined.insert(joined.end(), semantic + n * dim, semantic + (n + 1) * dim);
    joined.insert(joined.end(), acoustic + n * dim, acoustic + (n + 1) * dim);
  }
  w.out_proj = pack(joined.data(), row_major(config.width, 2 * config.codebook_dim), nullptr);
}

void load_upsample(DecoderWeights &w, TensorReader &reader, const Config &config) {
  const int kernel = 2 * config.stride();
  w.upsample_conv.in = config.width;
  w.upsample_conv.taps = 2;
  if (config.upsample_groups < config.width) {
    w.upsample_conv =
        load_transposed(reader, "upsample", config.width, config.width, config.stride(), config.upsample_groups, false);
    return;
  }
  const float *from = reader.floats("upsample.weight", {config.width, 1, kernel});
  const auto width = static_cast<size_t>(config.width), taps = static_cast<size_t>(kernel);  // an int cannot hold both
  w.upsample.resize(taps * width);
  if (!from) return;
  for (size_t c = 0; c < width; ++c)
    for (size_t p = 0; p < taps; ++p) w.upsample[p * width + c] = from[c * taps + p];
}

}  // namespace

std::vector<Conv *> DecoderWeights::convs() {
  std::vector<Conv *> all = {&upsample_conv, &conv_in};
  for (DecoderBlock &block : blocks) {
    all.push_back(&block.up);
    for (Residual &residual : block.residuals) all.push_back(&residual.conv1);
  }
  all.push_back(&conv_out);
  return all;
}

size_t DecoderState::bytes() const { return transformer.cache.bytes() + contexts.bytes(); }

Decoder::Decoder(const Config &config, const TensorMap &tensors) : config_(config) {
  config.check();
  TensorReader reader(tensors);
  DecoderWeights &w = weights_;
  load_quantizer(w, reader, config);
  load_upsample(w, reader, config);
  w.transformer = load_transformer(reader, "dec.tfm", config);
  int channels = config.filters << config.ratios.size();
  w.conv_in = load_conv(reader, "dec.conv_in", channels, config.width, config.kernel, 1, 1, true);
  for (size_t i = 0; i < config.ratios.size(); ++i, channels /= 2)
    w.blocks.push_back(load_block(reader, config, static_cast<int>(i), channels));
  w.conv_out = load_conv(reader, "dec.conv_out", 1, channels, config.last_kernel, 1, 1, true);
  reader.check();
  context_sizes_ = number_contexts(w.convs());
}

DecoderState Decoder::new_state() const {
  return {this, 0, make_state(weights_.transformer), make_contexts(context_sizes_)};
}

void Decoder::measure(bool on) {
  const std::lock_guard<std::mutex> lock(mutex_);
  profile_.measure(on);
}

ProfileResult Decoder::profile() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return profile_.result();
}

// What all workers need to know of one pass.
struct Decoder::Pass {
  std::vector<TransformerState *> transformers;
  std::vector<Contexts *> contexts;
  const int *codes;
  ptrdiff_t stream_codes;  // codes from one stream to the next
  int frames;
  int code_stride;
  int codebooks;
  float *out;
  ptrdiff_t stream_samples;  // samples from one stream to the next

  int streams() const { return static_cast<int>(contexts.size()); }
};

void Decoder::decode(ThreadPool &pool, const std::vector<DecoderState *> &states, const int *codes, int frames,
                     int code_stride, int codebooks, float *out) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int streams = static_cast<int>(states.size());
  if (streams == 0 || frames == 0) return;
  const int most = std::max(1, kFramesPerPass / streams);
  reserve(streams, std::min(frames, most), pool.threads());
  Pass pass = {{},          {},        codes, ptrdiff_t{frames} * code_stride,          0,
               code_stride, codebooks, out,   ptrdiff_t{frames} * config_.frame_samples};
  for (DecoderState *state : states) {
    pass.transformers.push_back(&state->transformer);
    pass.contexts.push_back(&state->contexts);
    state->frames += frames;
  }
  for (int first = 0; first < frames; first += most) {
    pass.frames = std::min(most, frames - first);
    pass.codes = codes + ptrdiff_t{first} * code_stride;
    pass.out = out + ptrdiff_t{first} * config_.frame_samples;
    profile_.begin();
    pool.run([&](int index) { run({&pool, index, pool.threads(), &profile_}, pass); });
    profile_.end();
  }
}

// --- one pass ------------------------------------------------------------------------------------------------------

int Decoder::steps_before(size_t block) const {
  int steps = config_.stride();
  for (size_t b = 0; b < block; ++b) steps *= config_.ratios[b];
  return steps;
}

const Conv &Decoder::conv_after(size_t block) const {
  return block + 1 < weights_.blocks.size() ? weights_.blocks[block + 1].up : weights_.conv_out;
}

void Decoder::reserve(int streams, int frames, int workers) {
  const int rows = streams * frames, steps = frames * config_.stride();
  scratch_.sums.need(static_cast<size_t>(rows) * static_cast<size_t>(2 * config_.codebook_dim));
  scratch_.latent.need(signal_size(streams, weights_.upsample_conv.context(), frames, config_.width));
  scratch_.hidden.need(signal_size(streams, weights_.conv_in.context(), steps, config_.width));
  scratch_.transformer.need(weights_.transformer, rows * config_.stride(), workers);
  const Conv &first = conv_after(static_cast<size_t>(-1));
  for (Buffer &between : scratch_.between) between.need(signal_size(streams, first.context(), steps, first.in));
  for (size_t b = 0; b < weights_.blocks.size(); ++b)
    b < kWholeBlocks ? reserve_block(b, streams, frames) : reserve_block(b, 1, 1);
}

void Decoder::reserve_block(size_t index, int streams, int frames) {
  const DecoderBlock &block = weights_.blocks[index];
  const int steps = frames * steps_before(index + 1), channels = block.up.out;
  scratch_.block.need(block.residuals, streams, steps, channels);
  for (Buffer &between : scratch_.between)
    between.need(signal_size(streams, conv_after(index).context(), steps, channels));
}

void Decoder::look_up(const Worker &worker, const Pass &pass) {
  const int dim = config_.codebook_dim;
  const Range share = worker.share(pass.streams() * pass.frames);
  for (int r = share.begin; r < share.end; ++r) {
    float *sums = scratch_.sums.data() + ptrdiff_t{r} * 2 * dim;
    std::fill_n(sums, 2 * dim, 0.0f);
    const int *codes =
        pass.codes + (r / pass.frames) * pass.stream_codes + ptrdiff_t{r % pass.frames} * pass.code_stride;
    for (int k = 0; k < pass.codebooks; ++k) {
      const int code = std::clamp(codes[k], 0, config_.codebook_size - 1);
      const float *row = weights_.codebooks[static_cast<size_t>(k)] + ptrdiff_t{code} * dim;
      float *sum = k < config_.semantic_codebooks ? sums : sums + dim;
      for (int d = 0; d < dim; ++d) sum[d] += row[d];
    }
  }
  worker.finish("rvq.lookup");
}

// Latents of the looked-up codes, and from them the transformer's input, `stride` steps a frame.
Signal Decoder::resample(const Worker &worker, const Pass &pass) {
  const int width = config_.width, stride = config_.stride();
  const Conv &up = weights_.upsample_conv;
  const Signal latent = signal_at(scratch_.latent.data(), pass.streams(), up.context(), pass.frames, width);
  const Signal hidden =
      signal_at(scratch_.hidden.data(), pass.streams(), weights_.conv_in.context(), pass.frames * stride, width);
  const PackedMatrix w = weights_.out_proj.view();
  const int dims = 2 * config_.codebook_dim;
  recall(worker, up, latent, pass.contexts.data());
  multiply(worker,
           {&w,
            {scratch_.sums.data(), pass.streams() * pass.frames, dims, 0},
            {nullptr, 1, 0, 0},
            nullptr,
            latent.rows(),
            {nullptr, 1, 0, 0},
            Activation::none},
           pass.streams() * pass.frames);
  worker.finish("rvq.out_proj");

  keep(worker, up, latent, pass.contexts.data());
  recall(worker, weights_.conv_in, hidden, pass.contexts.data());
  if (!weights_.depthwise()) {
    convolve(worker, up, latent, {hidden, {}, Activation::none, {}}, nullptr);
  } else {
    const Range share = worker.share(pass.streams() * hidden.steps);
    for (int r = share.begin; r < share.end; ++r) {
      const int stream = r / hidden.steps, step = r % hidden.steps, phase = step % stride;
      const float *now = latent.fresh_of(stream) + ptrdiff_t{step / stride} * width;
      const float *tap_now = weights_.upsample.data() + ptrdiff_t{phase} * width;
      const float *tap_before = tap_now + ptrdiff_t{stride} * width;
      float *out = hidden.fresh_of(stream) + ptrdiff_t{step} * width;
      for (int c = 0; c < width; ++c) out[c] = tap_now[c] * now[c] + tap_before[c] * now[c - width];
    }
  }
  worker.finish("upsample");
  return hidden;
}

// Upsampling and residual blocks; `in` holds elu(x) with the context of block.up, so does what is returned for the
// next convolution.
Signal Decoder::run_block(const Worker &worker, size_t index, const Signal &in, Contexts *const *streams,
                          Buffer &into) {
  const DecoderBlock &block = weights_.blocks[index];
  const Conv &next = conv_after(index);
  const Signal out = signal_at(into.data(), in.streams, next.context(), in.steps * block.up.phases, block.up.out);
  recall_active(worker, block.residuals, 0, out, next, streams, scratch_.block);
  convolve(worker, block.up, in, block_input(block.residuals, out, scratch_.block), nullptr);
  worker.finish("block.up", static_cast<int>(index));
  run_residuals(worker, block.residuals, out, next, streams, scratch_.block, static_cast<int>(index));
  return out;
}

// The blocks after the whole ones and the last convolution, for one frame of one stream.
void Decoder::finish_slice(const Worker &worker, const Pass &pass, const Signal &in, int stream, int frame) {
  Contexts *const *contexts = pass.contexts.data() + stream;
  const size_t whole = std::min(kWholeBlocks, weights_.blocks.size());
  Signal signal = in;
  for (size_t b = whole; b < weights_.blocks.size(); ++b) {
    if (b > whole) keep(worker, weights_.blocks[b].up, signal, contexts);
    signal = run_block(worker, b, signal, contexts, scratch_.between[(whole + 1 + (b - whole) % 2) % 3]);
  }
  if (weights_.blocks.size() > whole) keep(worker, weights_.conv_out, signal, contexts);
  float *samples = pass.out + stream * pass.stream_samples + ptrdiff_t{frame} * config_.frame_samples;
  convolve(worker, weights_.conv_out, signal,
           {signal_at(samples, 1, 0, config_.frame_samples, 1), {}, Activation::none, {}}, nullptr);
  worker.finish("conv_out");
}

void Decoder::run(const Worker &worker, const Pass &pass) {
  look_up(worker, pass);
  const Signal hidden = resample(worker, pass);
  run_transformer(worker, weights_.transformer, hidden.rows(), pass.streams(), hidden.steps, pass.transformers.data(),
                  scratch_.transformer);

  Contexts *const *contexts = pass.contexts.data();
  const Conv &first = conv_after(static_cast<size_t>(-1));
  Signal signal = signal_at(scratch_.between[0].data(), pass.streams(), first.context(), hidden.steps, first.in);
  keep(worker, weights_.conv_in, hidden, contexts);
  recall(worker, first, signal, contexts);
  convolve(worker, weights_.conv_in, hidden, {{}, signal, Activation::elu, {}}, nullptr);
  worker.finish("conv_in");
  const size_t whole = std::min(kWholeBlocks, weights_.blocks.size());
  for (size_t b = 0; b < whole; ++b) {
    keep(worker, weights_.blocks[b].up, signal, contexts);
    signal = run_block(worker, b, signal, contexts, scratch_.between[(b + 1) % 3]);
  }
  const int steps = signal.steps / pass.frames;
  for (int stream = 0; stream < pass.streams(); ++stream)
    for (int frame = 0; frame < pass.frames; ++frame)
      finish_slice(worker, pass, signal.slice(stream, frame * steps, steps), stream, frame);
  keep(worker, conv_after(whole - 1), signal, contexts);
}

}  // namespace csm::mimi
