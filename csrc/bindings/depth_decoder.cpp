// Sampler, embedding table and depth decoder.
#include <optional>

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "depth_decoder.h"
#include "linear.h"
#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/profile.h"
#include "bindings/gil_release.h"
#include "bindings/tensors.h"

namespace py = pybind11;

namespace csm {
namespace {

TensorType tensor_type(int type) {
  const auto out = static_cast<TensorType>(type);
  if (type_info(out) == nullptr) throw py::value_error("GGML type " + std::to_string(type) + " is not supported");
  return out;
}

// An EmbeddingTable and the array that it reads.
struct OwnedTable {
  EmbeddingTable table;
  Array<std::uint8_t> data;
};

OwnedTable make_table(const py::object &data, int type, std::int64_t rows, int cols) {
  auto bytes = checked<std::uint8_t>(data, "data", {-1});
  TensorMap map{{"data", {tensor_type(type), {rows, cols}, bytes.data(), static_cast<std::size_t>(bytes.size())}}};
  if (rows < 1 || cols < 1) throw py::value_error("rows and cols must be at least 1");
  TensorReader reader(map);
  reader.take("data", {rows, cols});
  reader.check();
  return {{tensor_type(type), rows, cols, bytes.data()}, std::move(bytes)};
}

Array<float> sum_rows(const OwnedTable &owned, const py::object &ids_argument) {
  const auto ids = checked<std::int64_t>(ids_argument, "ids", {-1, -1});
  const EmbeddingTable &table = owned.table;
  const py::ssize_t batch = ids.shape(0), n = ids.shape(1);
  const std::int64_t *id = ids.data();
  for (py::ssize_t i = 0; i < ids.size(); ++i)
    if (id[i] < 0 || id[i] >= table.rows)
      throw py::index_error("row " + std::to_string(id[i]) + " is outside 0.." + std::to_string(table.rows - 1));
  Array<float> out({batch, static_cast<py::ssize_t>(table.cols)});
  float *sum = out.mutable_data();
  {
    GilRelease gil_release;
    std::fill_n(sum, out.size(), 0.0f);
    std::vector<float> row(static_cast<std::size_t>(table.cols));
    for (py::ssize_t b = 0; b < batch; ++b, sum += table.cols)
      for (py::ssize_t i = 0; i < n; ++i) {
        table.row(*id++, row.data());
        for (int k = 0; k < table.cols; ++k) sum[k] += row[static_cast<std::size_t>(k)];
      }
  }
  return out;
}

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

Array<std::int32_t> decode_frames(OwnedDecoder &self, const py::object &hidden_argument, const py::object &logits_argument,
                                  const std::vector<Sampler *> &samplers) {
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

std::unique_ptr<Linear> make_linear(const py::object &data, int type, int rows, int cols, std::shared_ptr<ThreadPool> pool) {
  const auto bytes = checked<std::uint8_t>(data, "data", {-1});
  if (rows < 1 || cols < 1) throw py::value_error("rows and cols must be at least 1");
  const TensorSource source{tensor_type(type), {rows, cols}, bytes.data(), static_cast<std::size_t>(bytes.size())};
  GilRelease gil_release;
  return std::make_unique<Linear>(source, rows, cols, std::move(pool), kernels());
}

Array<float> multiply(Linear &self, const py::object &x_argument) {
  const auto x = checked<float>(x_argument, "x", {-1, self.cols()});
  Array<float> y({x.shape(0), static_cast<py::ssize_t>(self.rows())});
  const float *in = x.data();
  float *out = y.mutable_data();
  {
    GilRelease gil_release;
    self.multiply(static_cast<int>(x.shape(0)), in, out);
  }
  return y;
}

void bind_linear(py::module_ &m) {
  py::class_<Linear>(m, "Linear",
                     "A (rows, cols) tensor of any supported GGML type, packed for products.\n\n"
                     "data: (bytes,) uint8 in the file's layout; it is not kept.\n"
                     "Raises ValueError for an unsupported type or a size that does not fit the shape.")
      .def(py::init(&make_linear), py::kw_only(), py::arg("data"), py::arg("type"), py::arg("rows"), py::arg("cols"),
           py::arg("pool").none(false))
      .def("multiply", &multiply, py::arg("x"), "x: (n, cols) float32. Returns (n, rows) float32, each row the product.");
}

void bind_sampler(py::module_ &m) {
  py::class_<Sampler>(m, "Sampler",
                      "Draws one code at a time from logits; one for each stream.\n\n"
                      "temperature and top_k are for code 0; depth_temperature and depth_top_k for the others, the same\n"
                      "where not given. Temperature 0 is greedy and ignores the seed; top_k <= 0 keeps every entry. Entries\n"
                      "tied with the\n"
                      "top_k-th largest are kept, NaN is never chosen, equal scores go to the lowest entry. The n-th draw of\n"
                      "a seed depends on the logits alone.\n\n"
                      "Raises ValueError for a negative or non-finite temperature.")
      .def(py::init([](std::uint64_t seed, float temperature, int top_k, std::optional<float> depth_temperature,
                       std::optional<int> depth_top_k) {
             return Sampler({seed,
                             {temperature, top_k},
                             {depth_temperature.value_or(temperature), depth_top_k.value_or(top_k)}});
           }),
           py::kw_only(), py::arg("seed"), py::arg("temperature"), py::arg("top_k"),
           py::arg("depth_temperature") = py::none(), py::arg("depth_top_k") = py::none())
      .def(
          "sample",
          [](Sampler &self, const py::object &logits_argument, int codebook) {
            const auto logits = checked<float>(logits_argument, "logits", {-1});
            if (logits.size() == 0) throw py::value_error("logits must not be empty");
            return self.sample(logits.data(), static_cast<int>(logits.size()), codebook);
          },
          py::arg("logits"), py::kw_only(), py::arg("codebook") = 0,
          "One code from the logits (V,) float32 of a codebook.")
      .def_property_readonly("seed", [](const Sampler &self) { return self.config().seed; })
      .def_property_readonly("temperature", [](const Sampler &self) { return self.config().first.temperature; })
      .def_property_readonly("top_k", [](const Sampler &self) { return self.config().first.top_k; })
      .def_property_readonly("draws", &Sampler::draws, "Codes drawn so far.");
}

void bind_config(py::module_ &m) {
  py::class_<DepthDecoderConfig>(m, "DepthDecoderConfig", "Sizes of a depth decoder; see csrc/depth_decoder.h.")
      .def(py::init([](const TowerConfig &tower, int codebooks, int vocab, int input_width) {
             return DepthDecoderConfig{tower, codebooks, vocab, input_width};
           }),
           py::kw_only(), py::arg("tower"), py::arg("codebooks"), py::arg("vocab"), py::arg("input_width"));
}

}  // namespace

void bind_depth_decoder(py::module_ &m) {
  bind_sampler(m);
  bind_config(m);
  bind_linear(m);

  py::class_<OwnedTable>(m, "EmbeddingTable",
                         "Rows of a (rows, cols) tensor of any supported GGML type, looked up and summed in float32.\n\n"
                         "data: (bytes,) uint8 in the file's layout; it is read in place, not copied.\n"
                         "Raises ValueError for an unsupported type or a size that does not fit the shape.")
      .def(py::init(&make_table), py::kw_only(), py::arg("data"), py::arg("type"), py::arg("rows"), py::arg("cols"))
      .def("sum_rows", &sum_rows, py::arg("ids"),
           "ids: (B, n) int64. Returns (B, cols) float32, the sum over n in order.\n\nRaises IndexError for a row that is "
           "not there.")
      .def_property_readonly("rows", [](const OwnedTable &self) { return self.table.rows; })
      .def_property_readonly("cols", [](const OwnedTable &self) { return self.table.cols; });

  py::class_<OwnedDecoder>(m, "DepthDecoder",
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
      .def("measure", [](OwnedDecoder &self, bool on) { measure(*self.decoder, on); }, py::kw_only(), py::arg("on"),
           kMeasureDoc)
      .def("parts", [](const OwnedDecoder &self) { return parts_of(profile(*self.decoder)); }, kPartsDoc);
}

}  // namespace csm
