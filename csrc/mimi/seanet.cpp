#include "mimi/seanet.h"

namespace csm::mimi {
namespace {

// elu(x) for residual j, laid out for blocks whose result is `out`.
Signal active_for(const std::vector<Residual> &residuals, size_t j, const Signal &out, BlockScratch &scratch) {
  return signal_at(scratch.active.data(), out.streams, residuals[j].conv1.context(), out.steps, out.channels);
}

Signal raw_for(const Signal &out, BlockScratch &scratch) {
  return signal_at(scratch.raw.data(), out.streams, 0, out.steps, out.channels);
}

}  // namespace

std::vector<Residual> load_residuals(TensorReader &reader, const std::string &name, int channels,
                                     const Config &config) {
  std::vector<Residual> residuals;
  const int hidden = channels / config.compress;
  int dilation = 1;
  for (int j = 0; j < config.residual_layers; ++j, dilation *= config.dilation_growth) {
    const std::string at = name + ".res." + std::to_string(j);
    residuals.push_back({load_conv(reader, at + ".conv1", hidden, channels, config.residual_kernel, 1, dilation, true),
                         load_conv(reader, at + ".conv2", channels, hidden, 1, 1, 1, true)});
  }
  return residuals;
}

void BlockScratch::need(const std::vector<Residual> &residuals, int streams, int steps, int channels) {
  raw.need(signal_size(streams, 0, steps, channels));
  for (const Residual &residual : residuals) {
    active.need(signal_size(streams, residual.conv1.context(), steps, channels));
    inner.need(signal_size(streams, 0, steps, residual.conv1.out));
    windows.need(window_scratch(residual.conv1, streams, steps));
  }
}

Outputs block_input(const std::vector<Residual> &residuals, const Signal &out, BlockScratch &scratch) {
  if (residuals.empty()) return {{}, out, Activation::elu, {}};
  return {raw_for(out, scratch), active_for(residuals, 0, out, scratch), Activation::elu, {}};
}

void recall_active(const Worker &worker, const std::vector<Residual> &residuals, size_t j, const Signal &out,
                   const Conv &next, Contexts *const *streams, BlockScratch &scratch) {
  if (j < residuals.size()) recall(worker, residuals[j].conv1, active_for(residuals, j, out, scratch), streams);
  else recall(worker, next, out, streams);
}

void run_residuals(const Worker &worker, const std::vector<Residual> &residuals, const Signal &out, const Conv &next,
                   Contexts *const *streams, BlockScratch &scratch, int block) {
  const Signal raw = raw_for(out, scratch);
  for (size_t j = 0; j < residuals.size(); ++j) {
    const Residual &residual = residuals[j];
    const Signal active = active_for(residuals, j, out, scratch);
    const Signal inner = signal_at(scratch.inner.data(), out.streams, 0, out.steps, residual.conv1.out);
    keep(worker, residual.conv1, active, streams);
    convolve(worker, residual.conv1, active, {{}, inner, Activation::elu, {}}, scratch.windows.data());
    worker.finish("block.conv1", block);

    const bool last = j + 1 == residuals.size();
    recall_active(worker, residuals, j + 1, out, next, streams, scratch);
    convolve(worker, residual.conv2, inner,
             {last ? Signal{} : raw, last ? out : active_for(residuals, j + 1, out, scratch), Activation::elu, raw},
             nullptr);
    worker.finish("block.conv2", block);
  }
}

}  // namespace csm::mimi
