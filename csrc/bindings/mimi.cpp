#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/configs.h"
#include "bindings/gil_release.h"
#include "bindings/profile.h"
#include "bindings/tensors.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "foundation/thread_pool.h"
#include "mimi/decoder.h"
#include "mimi/encoder.h"

namespace py = pybind11;

namespace csm {
namespace {

// A decoder or an encoder of the codec, what it reads in place, and the threads that it runs on.
template <class Core>
struct Owned {
  Owned(const py::object &config, const py::dict &tensors, std::shared_ptr<ThreadPool> threads)
      : held(tensors.attr("copy")()), pool(threads ? std::move(threads) : std::make_shared<ThreadPool>(1)) {
    const mimi::Config sizes = codec_config(config);
    const TensorMap views = float_tensors(held);
    GilRelease gil_release;
    core = std::make_unique<Core>(sizes, views);
  }

  py::dict held;  // the codebooks' rows are used in place; a copy, since the caller's may change
  std::shared_ptr<ThreadPool> pool;
  std::unique_ptr<Core> core;
};
using PyDecoder = Owned<mimi::Decoder>;
using PyEncoder = Owned<mimi::Encoder>;

Array<float> decode(PyDecoder &self, const std::vector<mimi::DecoderState *> &states, const py::object &codes_argument,
                    int codebooks) {
  const mimi::Config &config = self.core->config();
  const auto codes = checked<std::int32_t>(codes_argument, "codes", {-1, -1, -1});
  if (codes.shape(0) != static_cast<ptrdiff_t>(states.size()))
    throw std::invalid_argument("codes must be (streams, frames, codebooks) with one stream per state, " +
                                std::to_string(states.size()) + " states given");
  const int stored = static_cast<int>(codes.shape(2)), frames = static_cast<int>(codes.shape(1));
  const int used = codebooks == 0 ? std::min(stored, config.codebooks) : codebooks;
  if (used < 1 || used > stored || used > config.codebooks)
    throw std::invalid_argument("cannot decode " + std::to_string(used) + " codebooks: the codes hold " +
                                std::to_string(stored) + ", the codec " + std::to_string(config.codebooks));
  for (size_t i = 0; i < states.size(); ++i) {
    if (states[i] == nullptr) throw std::invalid_argument("a state is None");
    if (states[i]->owner != self.core.get()) throw std::invalid_argument("a state belongs to another decoder");
    for (size_t j = 0; j < i; ++j)
      if (states[i] == states[j]) throw std::invalid_argument("the same state is given twice");
  }
  Array<float> out({codes.shape(0), static_cast<ptrdiff_t>(frames) * config.frame_samples});
  const std::int32_t *in = codes.data();
  float *samples = out.mutable_data();
  {
    GilRelease gil_release;
    self.core->decode(*self.pool, states, in, frames, stored, used, samples);
  }
  return out;
}

Array<std::int32_t> encode(PyEncoder &self, mimi::EncoderState &state, const py::object &samples_argument) {
  const mimi::Config &config = self.core->config();
  if (state.owner != self.core.get()) throw std::invalid_argument("the state belongs to another encoder");
  const auto samples = checked<float>(samples_argument, "samples", {-1});
  if (samples.shape(0) % config.frame_samples != 0)
    throw std::invalid_argument("samples must be (N,) with N a multiple of " + std::to_string(config.frame_samples));
  const ptrdiff_t frames = samples.shape(0) / config.frame_samples;
  Array<std::int32_t> out({frames, static_cast<ptrdiff_t>(config.codebooks)});
  const float *in = samples.data();
  std::int32_t *codes = out.mutable_data();
  {
    GilRelease gil_release;
    self.core->encode(*self.pool, state, in, static_cast<int>(frames), codes);
  }
  return out;
}

}  // namespace

void bind_mimi(py::module_ &m) {
  py::class_<mimi::DecoderState>(
      m, "MimiDecoderState", "What one stream of sound remembers from frame to frame. Made by MimiDecoder.new_state().")
      .def_property_readonly(
          "frames", [](const mimi::DecoderState &s) { return s.frames; }, "Frames decoded so far.")
      .def_property_readonly("bytes", &mimi::DecoderState::bytes, "Bytes that the state takes.");
  py::class_<PyDecoder> decoder(
      m, "MimiDecoder",
      "Frames of codes to samples, streaming.\n\n"
      "config: a MimiConfig. tensors: canonical name to C-contiguous float32 array (csm_hybrid.codec.schema);\n"
      "matrices of the transformer may be float16, and are kept so. The codebooks are used in place, all else\n"
      "is copied. pool: the threads to run on (one, when None).\n\n"
      "Raises ValueError when the configuration breaks a rule or, all together, for tensors that are missing\n"
      "or misshapen; TypeError for an array that is not C-contiguous or neither float32 nor float16.");
  decoder
      .def(py::init<const py::object &, const py::dict &, std::shared_ptr<ThreadPool>>(), py::kw_only(),
           py::arg("config"), py::arg("tensors"), py::arg("pool") = nullptr)
      .def(
          "new_state",
          [](const PyDecoder &self) { return std::make_unique<mimi::DecoderState>(self.core->new_state()); },
          "A stream that begins.", py::keep_alive<0, 1>())
      .def("decode", &decode, py::kw_only(), py::arg("states"), py::arg("codes"), py::arg("codebooks") = 0,
           "Samples (B, F * frame_samples) float32 of the next F frames of B streams; states move on.\n\n"
           "states: B different states of this decoder. codes: (B, F, K) int32, C-contiguous; codes outside a\n"
           "codebook count as its nearest entry. codebooks: how many of the K to use, 0 for all.\n\n"
           "The samples are the same bit for bit however frames are cut into calls and streams grouped.\n"
           "Raises ValueError for shapes that do not fit, foreign or repeated states.")
      .def(
          "measure", [](PyDecoder &self, bool on) { measure(*self.core, on); }, py::kw_only(), py::arg("on"),
          kMeasureDoc)
      .def("stages", [](const PyDecoder &self) { return stages_of(profile(*self.core)); }, kStagesDoc);

  py::class_<mimi::EncoderState>(
      m, "MimiEncoderState", "What one stream of sound remembers from call to call. Made by MimiEncoder.new_state().")
      .def_property_readonly(
          "frames", [](const mimi::EncoderState &s) { return s.frames; }, "Frames encoded so far.")
      .def_property_readonly("bytes", &mimi::EncoderState::bytes, "Bytes that the state takes.");
  py::class_<PyEncoder>(m, "MimiEncoder",
                        "Samples to frames of codes, streaming. Arguments and errors as MimiDecoder's.")
      .def(py::init<const py::object &, const py::dict &, std::shared_ptr<ThreadPool>>(), py::kw_only(),
           py::arg("config"), py::arg("tensors"), py::arg("pool") = nullptr)
      .def(
          "new_state",
          [](const PyEncoder &self) { return std::make_unique<mimi::EncoderState>(self.core->new_state()); },
          "A stream that begins.", py::keep_alive<0, 1>())
      .def("encode", &encode, py::kw_only(), py::arg("state"), py::arg("samples"),
           "Codes (F, K) int32 of the next F whole frames, samples (F * frame_samples,) float32; state moves on.\n\n"
           "The codes are the same however the samples are cut into calls.\n"
           "Raises ValueError for a length that is no whole number of frames or a foreign state.")
      .def(
          "measure", [](PyEncoder &self, bool on) { measure(*self.core, on); }, py::kw_only(), py::arg("on"),
          kMeasureDoc)
      .def("stages", [](const PyEncoder &self) { return stages_of(profile(*self.core)); }, kStagesDoc);
}

}  // namespace csm
