// The depth decoder.
#include "depth_decoder.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/gil_release.h"
#include "bindings/profile.h"
#include "bindings/tensors.h"

namespace py = pybind11;

namespace csm {
namespace {

// A decoder and the array of the audio table, which it reads in place.
struct OwnedDecoder {
  std::unique_ptr<DepthDecoder> decoder;
  py::object audio_embd;
};

std::unique_ptr<OwnedDecoder> make_decoder(const DepthDecoderConfig &config, const py::object &tensors,
                                           std::shared_ptr<ThreadPool> pool) {
  const TensorArguments arguments(tensors);
  auto out = std::make_unique<OwnedDecoder>();
  {
    GilRelease gil_release;
    out->decoder = std::make_unique<DepthDecoder>(config, arguments.map, std::move(pool), kernels());
  }
  out->audio_embd = arguments.data("audio_embd");
  return out;
}

Array<std::int32_t> decode_frames(OwnedDecoder &self, const py::object &hidden_argument,
                                  const py::object &logits_argument, const std::vector<Sampler *> &samplers) {
  const DepthDecoderConfig &c = self.decoder->config();
  const auto hidden = checked<float>(hidden_argument, "hidden", {-1, c.input_width});
  const py::ssize_t slots = hidden.shape(0);
  const auto c0_logits = checked<float>(logits_argument, "c0_logits", {slots, c.vocab});
  if (static_cast<py::ssize_t>(samplers.size()) != slots)
    throw py::value_error("samplers must be one for each of the " + std::to_string(slots) + " slots, not " +
                          std::to_string(samplers.size()));
  for (std::size_t i = 0; i < samplers.size(); ++i)
    for (std::size_t j = 0; j <= i; ++j)
      if (samplers[i] == nullptr || (j < i && samplers[i] == samplers[j]))
        throw py::value_error("every slot must have a sampler of its own");
  Array<std::int32_t> codes({slots, static_cast<py::ssize_t>(c.codebooks)});
  const float *h = hidden.data(), *l = c0_logits.data();
  std::int32_t *out = codes.mutable_data();
  {
    GilRelease gil_release;
    self.decoder->decode_frames(static_cast<int>(slots), h, l, samplers.data(), out);
  }
  return codes;
}

Array<float> teacher_forced(OwnedDecoder &self, const py::object &hidden_argument, const py::object &codes_argument) {
  const DepthDecoderConfig &c = self.decoder->config();
  const auto hidden = checked<float>(hidden_argument, "hidden", {-1, c.input_width});
  const py::ssize_t slots = hidden.shape(0);
  const auto codes = checked<std::int32_t>(codes_argument, "codes", {slots, c.codebooks});
  Array<float> out({slots, static_cast<py::ssize_t>(c.codebooks - 1), static_cast<py::ssize_t>(c.vocab)});
  const float *h = hidden.data();
  const std::int32_t *given = codes.data();
  float *logits = out.mutable_data();
  {
    GilRelease gil_release;
    self.decoder->logits(static_cast<int>(slots), h, given, logits);
  }
  return out;
}

}  // namespace

void bind_depth_decoder(py::module_ &m) {
  py::class_<DepthDecoderConfig>(m, "DepthDecoderConfig", "Sizes of a depth decoder; see csrc/depth_decoder.h.")
      .def(py::init([](const TowerConfig &tower, int codebooks, int vocab, int input_width) {
             return DepthDecoderConfig{tower, codebooks, vocab, input_width};
           }),
           py::kw_only(), py::arg("tower"), py::arg("codebooks"), py::arg("vocab"), py::arg("input_width"));

  py::class_<OwnedDecoder>(
      m, "DepthDecoder",
      "The depth decoder on packed weights.\n\n"
      "tensors: name -> object with `type` (GGML id), `shape` (row-major) and `data` (uint8). The\n"
      "weights are repacked, and only the data of `audio_embd` is kept.\n"
      "Raises ValueError that lists everything missing or misshapen.")
      .def(py::init(&make_decoder), py::kw_only(), py::arg("config"), py::arg("tensors"), py::arg("pool").none(false))
      .def("decode_frames", &decode_frames, py::kw_only(), py::arg("hidden"), py::arg("c0_logits"), py::arg("samplers"),
           "One frame for each of B slots.\n\n"
           "hidden: (B, input_width) float32; c0_logits: (B, V) float32; samplers: B, all different.\n"
           "Returns (B, K) int32. A slot's codes do not depend on the others or on the number of threads.")
      .def("logits", &teacher_forced, py::kw_only(), py::arg("hidden"), py::arg("codes"),
           "Teacher-forced logits of codes 1 .. K - 1.\n\n"
           "hidden: (B, input_width) float32; codes: (B, K) int32 in 0 .. V - 1.\n"
           "Returns (B, K - 1, V) float32. Raises ValueError for a code outside.")
      .def(
          "measure", [](OwnedDecoder &self, bool on) { measure(*self.decoder, on); }, py::kw_only(), py::arg("on"),
          kMeasureDoc)
      .def("parts", [](const OwnedDecoder &self) { return parts_of(profile(*self.decoder)); }, kPartsDoc);
}

}  // namespace csm
