#include "mimi/conv.h"

#include <algorithm>
#include <cstring>

namespace csm::mimi {
namespace {

const ConstRows kNoRows = {nullptr, 1, 0, 0};
const Rows kNowhere = {nullptr, 1, 0, 0};

Rows rows_or_none(const Signal &signal, int group) { return signal.base ? signal.rows(group) : kNowhere; }

ConstRows windows_of(const Conv &conv, const Signal &in) {
  const ptrdiff_t skipped = in.context - conv.context();
  return {in.base + skipped * in.channels, conv.windows(in.steps), ptrdiff_t{conv.stride} * in.channels,
          in.stream_stride};
}

// The taps of dilated windows, side by side.
ConstRows gather(const Worker &worker, const Conv &conv, const Signal &in, float *scratch) {
  const ConstRows windows = windows_of(conv, in);
  const ptrdiff_t length = ptrdiff_t{conv.taps} * conv.in;
  const Range share = worker.share(in.streams * windows.per_block);
  for (int r = share.begin; r < share.end; ++r) {
    const float *from =
        windows.base + (r / windows.per_block) * windows.block_stride + (r % windows.per_block) * windows.row_stride;
    for (int tap = 0; tap < conv.taps; ++tap)
      std::copy_n(from + ptrdiff_t{tap} * conv.dilation * conv.in, conv.in, scratch + r * length + tap * conv.in);
  }
  worker.finish("gather");
  return {scratch, windows.per_block, length, length * windows.per_block};
}

}  // namespace

Rows Signal::rows(int group) const {
  return {base + ptrdiff_t{context} * channels, steps / group, ptrdiff_t{channels} * group, stream_stride};
}

Signal Signal::slice(int stream, int first, int count) const {
  Signal part = *this;
  part.base = context_of(stream) + ptrdiff_t{first} * channels;
  part.streams = 1;
  part.steps = count;
  return part;
}

size_t signal_size(int streams, int context, int steps, int channels) {
  return static_cast<size_t>(streams) * static_cast<size_t>(context + steps) * static_cast<size_t>(channels);
}

Signal signal_at(float *at, int streams, int context, int steps, int channels) {
  return {at, streams, context, steps, channels, ptrdiff_t{context + steps} * channels};
}

Conv load_conv(TensorReader &reader, const std::string &name, int out, int in, int kernel, int stride, int dilation,
               bool bias) {
  Conv conv;
  conv.in = in;
  conv.out = out;
  conv.taps = kernel;
  conv.stride = stride;
  conv.dilation = dilation;
  const float *weight = reader.floats(name + ".weight", {out, in, kernel});
  const float *offsets = bias ? reader.floats(name + ".bias", {out}) : nullptr;
  if (!reader.good()) return conv;
  Layout layout;
  for (long o = 0; o < out; ++o) layout.n_offsets.push_back(o * in * kernel);
  for (long tap = 0; tap < kernel; ++tap)
    for (long i = 0; i < in; ++i) layout.k_offsets.push_back(i * kernel + tap);
  conv.w = pack(weight, layout, offsets);
  return conv;
}

Conv load_transposed(TensorReader &reader, const std::string &name, int in, int out, int stride, int groups,
                     bool bias) {
  Conv conv;
  conv.in = in;
  conv.out = out;
  conv.taps = 2;
  conv.phases = stride;
  const int kernel = conv.taps * stride, group_in = in / groups, group_out = out / groups;
  const float *weight = reader.floats(name + ".weight", {in, group_out, kernel});
  const float *offsets = bias ? reader.floats(name + ".bias", {out}) : nullptr;
  if (!reader.good()) return conv;

  // Output step p of window t: sum over m of x[t - m] W[:, :, p + m * stride]; the window's last tap is m = 0.
  // Groups are written out as a block-diagonal matrix.
  std::vector<float> dense;
  if (groups > 1) {
    dense.assign(static_cast<size_t>(in) * static_cast<size_t>(out) * static_cast<size_t>(kernel), 0.0f);
    for (long i = 0; i < in; ++i)
      for (long o = 0; o < group_out; ++o)
        std::copy_n(weight + (i * group_out + o) * kernel, kernel,
                    dense.data() + (i * out + i / group_in * group_out + o) * kernel);
    weight = dense.data();
  }
  Layout layout;
  std::vector<float> repeated;
  for (long p = 0; p < stride; ++p)
    for (long o = 0; o < out; ++o) {
      layout.n_offsets.push_back(o * kernel + p);
      repeated.push_back(offsets ? offsets[o] : 0.0f);
    }
  for (long m = conv.taps - 1; m >= 0; --m)
    for (long i = 0; i < in; ++i) layout.k_offsets.push_back(i * out * kernel + m * stride);
  conv.w = pack(weight, layout, repeated.data());
  return conv;
}

void convolve(const Worker &worker, const Conv &conv, const Signal &in, const Outputs &out, float *scratch) {
  const PackedMatrix w = conv.w.view();
  DenseMatMul product = {&w,
                         windows_of(conv, in),
                         kNoRows,
                         nullptr,
                         rows_or_none(out.raw, conv.phases),
                         rows_or_none(out.active, conv.phases),
                         out.activation};
  if (conv.dilation > 1 && conv.taps > 1) product.x = gather(worker, conv, in, scratch);
  if (out.skip.base) {
    const Rows skip = out.skip.rows();
    product.skip = {skip.base, skip.per_block, skip.row_stride, skip.block_stride};
  }
  multiply(worker, product, in.streams * conv.windows(in.steps));
}

size_t window_scratch(const Conv &conv, int streams, int steps) {
  if (conv.dilation == 1 || conv.taps == 1) return 0;
  return static_cast<size_t>(streams) * static_cast<size_t>(conv.windows(steps)) * static_cast<size_t>(conv.taps) *
         static_cast<size_t>(conv.in);
}

size_t Contexts::bytes() const {
  size_t floats = 0;
  for (const Buffer &context : kept) floats += context.size();
  return floats * sizeof(float);
}

std::vector<size_t> number_contexts(const std::vector<Conv *> &convs) {
  std::vector<size_t> sizes;
  for (Conv *conv : convs) {
    conv->number = static_cast<int>(sizes.size());
    sizes.push_back(static_cast<size_t>(conv->context()) * static_cast<size_t>(conv->in));
  }
  return sizes;
}

Contexts make_contexts(const std::vector<size_t> &sizes) {
  Contexts contexts;
  for (size_t floats : sizes) contexts.kept.emplace_back(floats);
  return contexts;
}

void recall(const Worker &worker, const Conv &conv, const Signal &in, Contexts *const *streams) {
  const size_t floats = static_cast<size_t>(in.context) * static_cast<size_t>(in.channels);
  if (floats == 0) return;
  const Range share = worker.share(in.streams);
  for (int s = share.begin; s < share.end; ++s)
    std::memcpy(in.context_of(s), streams[s]->kept[static_cast<size_t>(conv.number)].data(), floats * sizeof(float));
}

void keep(const Worker &worker, const Conv &conv, const Signal &in, Contexts *const *streams) {
  const size_t floats = static_cast<size_t>(in.context) * static_cast<size_t>(in.channels);
  if (floats == 0) return;
  const Range share = worker.share(in.streams);
  for (int s = share.begin; s < share.end; ++s)
    std::memcpy(streams[s]->kept[static_cast<size_t>(conv.number)].data(),
                in.context_of(s) + ptrdiff_t{in.steps} * in.channels, floats * sizeof(float));
}

}  // namespace csm::mimi
