// The backbone.
#include <algorithm>
#include <memory>

#include "backbone.h"
#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/gil_release.h"
#include "bindings/profile.h"
#include "bindings/tensors.h"

namespace py = pybind11;

namespace csm {
namespace {

std::unique_ptr<Backbone> make_backbone(const TowerConfig &config, int vocab, int slots, const py::object &tensors,
                                        std::shared_ptr<ThreadPool> pool) {
  const TensorArguments arguments(tensors);
  GilRelease gil_release;
  return std::make_unique<Backbone>(config, vocab, slots, arguments.map, std::move(pool), kernels());
}

py::tuple decode(Backbone &self, const py::object &embeddings_argument, const py::object &positions_argument,
                 const py::object &slots_argument, const py::object &outputs_argument) {
  const auto embeddings = checked<float>(embeddings_argument, "embeddings", {-1, self.config().width});
  const py::ssize_t n = embeddings.shape(0);
  const auto positions = checked<std::int32_t>(positions_argument, "positions", {n});
  const auto slots = checked<std::int32_t>(slots_argument, "slots", {n});
  const auto outputs = checked<bool>(outputs_argument, "outputs", {n});
  const bool *wanted = outputs.data();
  const py::ssize_t m = std::count(wanted, wanted + n, true);
  Array<float> hidden({m, static_cast<py::ssize_t>(self.config().width)});
  Array<float> logits({m, static_cast<py::ssize_t>(self.vocab())});
  const float *in = embeddings.data();
  const std::int32_t *position = positions.data(), *slot = slots.data();
  float *h = hidden.mutable_data(), *l = logits.mutable_data();
  {
    GilRelease gil_release;
    self.decode(static_cast<int>(n), in, position, slot, wanted, h, l);
  }
  return py::make_tuple(hidden, logits);
}

Array<float> save(const Backbone &self, int slot, int count) {
  Array<float> saved(static_cast<py::ssize_t>(self.saved_floats(count)));
  float *out = saved.mutable_data();
  GilRelease gil_release;
  self.save(slot, count, out);
  return saved;
}

void restore(Backbone &self, int slot, int count, const py::object &saved_argument) {
  const auto saved = checked<float>(saved_argument, "saved", {static_cast<py::ssize_t>(self.saved_floats(count))});
  const float *in = saved.data();
  GilRelease gil_release;
  self.restore(slot, count, in);
}

}  // namespace

void bind_backbone(py::module_ &m) {
  py::class_<Backbone>(
      m, "Backbone",
      "The backbone on packed weights, with the keys and values of several slots in float32.\n\n"
      "tensors: name -> object with `type` (GGML id), `shape` (row-major) and `data` (uint8); the weights\n"
      "are repacked, and nothing of the data is kept.\n"
      "Raises ValueError that lists everything missing or misshapen.")
      .def(py::init(&make_backbone), py::kw_only(), py::arg("config"), py::arg("vocab"), py::arg("slots"),
           py::arg("tensors"), py::arg("pool").none(false))
      .def("decode", &decode, py::kw_only(), py::arg("embeddings"), py::arg("positions"), py::arg("slots"),
           py::arg("outputs"),
           "The next positions of any mix of slots.\n\n"
           "embeddings: (N, width) float32; positions: (N,) int32, each the next one of its slot; slots: (N,)\n"
           "int32; outputs: (N,) bool, whose results are wanted.\n"
           "Returns hidden (M, width) and logits (M, vocab) float32 of the M wanted ones in order. A result does not\n"
           "depend on what else is in the pass, on how a slot's positions are cut into passes, or on the number of\n"
           "threads.\n"
           "Raises ValueError for a slot that is not there, that is full or that is at another position; nothing has\n"
           "changed then.")
      .def(
          "forget",
          [](Backbone &self, int slot) {
            GilRelease gil_release;
            self.forget(slot);
          },
          py::arg("slot"), "Empties a slot.")
      .def("save", &save, py::kw_only(), py::arg("slot"), py::arg("count"),
           "A copy of the keys and values of a slot's first `count` positions: (M,) float32, for restore().\n"
           "Raises ValueError for a slot that is not there or holds fewer.")
      .def("restore", &restore, py::kw_only(), py::arg("slot"), py::arg("count"), py::arg("saved"),
           "Gives an empty slot the `count` positions that save() copied: what follows has the same bits.\n"
           "Raises ValueError for a slot that is not there or not empty, or a copy of another size.")
      .def("measure", &measure<Backbone>, py::kw_only(), py::arg("on"),
           "Measures passes whose results are all wanted from now on, anew, or stops; what was found stays.")
      .def("parts", [](const Backbone &self) { return parts_of(profile(self)); }, kPartsDoc);
}

}  // namespace csm
