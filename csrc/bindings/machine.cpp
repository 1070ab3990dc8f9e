#include "bindings/bindings.h"
#include "bindings/gil_release.h"

#include <pybind11/stl.h>

#include "machine.h"

namespace py = pybind11;

namespace csm {

void bind_machine(py::module_ &m) {
  m.def(
      "measure_read",
      [](ThreadPool &pool, size_t bytes, int samples, double seconds) {
        GilRelease gil_release;
        return measure_read(pool, bytes, samples, seconds);
      },
      py::kw_only(), py::arg("pool"), py::arg("bytes"), py::arg("samples"), py::arg("seconds"),
      "Bytes read a second (samples,), every thread of the pool reading its share of a working set of\n"
      "``bytes`` over and over, each sample lasting ``seconds`` or a little more.\n\n"
      "Raises ValueError for less than two cache lines a thread, MemoryError.");
  m.def(
      "measure_peak",
      [](ThreadPool &pool, const std::string &arithmetic, int samples, double seconds) {
        if (arithmetic != "f32" && arithmetic != "int8")
          throw std::invalid_argument("unknown arithmetic '" + arithmetic + "'; known: f32, int8");
        GilRelease gil_release;
        return measure_peak(pool, arithmetic == "f32" ? Arithmetic::f32 : Arithmetic::int8, samples, seconds);
      },
      py::kw_only(), py::arg("pool"), py::arg("arithmetic"), py::arg("samples"), py::arg("seconds"),
      "Operations a second (samples,) of all threads out of registers: ``f32`` multiply-adds or ``int8`` dot\n"
      "products, with the instructions of the set in force; a product and its addition count as two.");
}

}  // namespace csm
