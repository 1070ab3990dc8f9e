// Causal convolutions, plain and transposed, as products of windows of rows with a packed matrix.
//
// Activations lie time-major (step, channel), so the window of a convolution is one contiguous row of
// kernel * channels floats and the next window begins stride * channels later: nothing is copied. A transposed
// convolution of kernel taps * stride gives `stride` steps at once, each its own columns of one matrix, from a
// window of `taps` input steps: no product is computed twice and none is thrown away.
#pragma once

#include <string>
#include <vector>

#include "foundation/tensors.h"
#include "mimi/worker.h"

namespace csm::mimi {

// Activations of a batch of streams: per stream `context` rows that came before, then `steps` rows.
struct Signal {
  float *base = nullptr;  // first context row of the first stream
  int streams = 0;
  int context = 0;
  int steps = 0;
  int channels = 0;
  ptrdiff_t stream_stride = 0;  // floats between streams

  float *context_of(int stream) const { return base + stream * stream_stride; }
  float *fresh_of(int stream) const { return context_of(stream) + ptrdiff_t{context} * channels; }
  // The fresh rows of all streams; `group` steps count as one row.
  Rows rows(int group = 1) const;
  // Steps [first, first + count) of one stream; what lies before them is their context.
  Signal slice(int stream, int first, int count) const;
};

// A signal laid out at `at`, and the floats that it takes.
Signal signal_at(float *at, int streams, int context, int steps, int channels);
size_t signal_size(int streams, int context, int steps, int channels);

struct Conv {
  Matrix w;          // (phases * out, taps * in)
  int in = 0;        // channels
  int out = 0;       // channels
  int taps = 1;      // input steps under the window
  int stride = 1;    // input steps from one window to the next
  int dilation = 1;  // input steps between two taps
  int phases = 1;    // output steps per window (transposed convolutions)
  int number = 0;    // of its context among a stream's contexts

  // Input steps that must be kept from call to call.
  int context() const { return (taps - 1) * dilation + 1 - stride; }
  int windows(int steps) const { return steps / stride; }
};

// Conv1d, weight (out, in, kernel), bias (out) unless bias_name is empty. Reads nothing while problems are pending.
Conv load_conv(TensorReader &reader, const std::string &name, int out, int in, int kernel, int stride, int dilation,
               bool bias);
// ConvTranspose1d, weight (in, out / groups, taps * stride).
Conv load_transposed(TensorReader &reader, const std::string &name, int in, int out, int stride, int groups, bool bias);

// What a convolution writes; base null: not wanted.
struct Outputs {
  Signal raw;
  Signal active;
  Activation activation = Activation::none;
  Signal skip;
};

// This worker's share of the convolution. `scratch` holds the windows of dilated ones (window_scratch floats).
void convolve(const Worker &worker, const Conv &conv, const Signal &in, const Outputs &out, float *scratch);
size_t window_scratch(const Conv &conv, int streams, int steps);

// Contexts of one stream's convolutions, by number.
struct Contexts {
  std::vector<Buffer> kept;

  size_t bytes() const;
};
// Numbers the convolutions that keep a context; returns the floats of each.
std::vector<size_t> number_contexts(const std::vector<Conv *> &convs);
Contexts make_contexts(const std::vector<size_t> &sizes);

// Brings the context rows of `in` (one Contexts per stream) and takes the last ones back.
void recall(const Worker &worker, const Conv &conv, const Signal &in, Contexts *const *streams);
void keep(const Worker &worker, const Conv &conv, const Signal &in, Contexts *const *streams);

}  // namespace csm::mimi
