// The sampler.
#include "sampler.h"

#include <pybind11/stl.h>

#include <optional>

#include "bindings/arrays.h"
#include "bindings/bindings.h"

namespace py = pybind11;

namespace csm {

void bind_sampler(py::module_ &m) {
  py::class_<Sampler>(
      m, "Sampler",
      "Draws one code at a time from logits; one for each slot.\n\n"
      "temperature and top_k are for code 0; depth_temperature and depth_top_k for the others, the same\n"
      "where not given. Temperature 0 is greedy and ignores the seed; top_k <= 0 keeps every entry. Entries\n"
      "tied with the top_k-th largest are kept, NaN is never chosen, equal scores go to the lowest entry.\n"
      "The n-th draw of a seed depends on the logits alone.\n\n"
      "Raises ValueError for a negative or non-finite temperature.")
      .def(py::init([](std::uint64_t seed, float temperature, int top_k, std::optional<float> depth_temperature,
                       std::optional<int> depth_top_k) {
             return Sampler(
                 {seed, {temperature, top_k}, {depth_temperature.value_or(temperature), depth_top_k.value_or(top_k)}});
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

}  // namespace csm
