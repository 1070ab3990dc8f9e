#include "bindings/bindings.h"
#include "bindings/gil_release.h"

#include <pybind11/stl.h>

#include "foundation/isa.h"
#include "foundation/thread_pool.h"

namespace py = pybind11;

namespace csm {

void bind_runtime(py::module_ &m) {
  m.def(
      "isa", [] { return std::string(isa_name(active_isa())); },
      "Name of the instruction set in force (CSM_HYBRID_ISA forces it).\n\n"
      "Raises RuntimeError when the variable asks for one that is unknown or that this CPU lacks.");
  m.def(
      "available_isas",
      [] {
        std::vector<std::string> out;
        for (Isa isa : available_isas()) out.emplace_back(isa_name(isa));
        return out;
      },
      "Names of the instruction sets that this CPU and build can run, worst first.");
  py::class_<ThreadPool, std::shared_ptr<ThreadPool>>(m, "ThreadPool", "Threads shared by the towers and the codec.")
      .def(py::init<int>(), py::kw_only(), py::arg("threads"),
           "Raises RuntimeError where the system does not start so many threads.")
      .def_property_readonly("threads", &ThreadPool::threads);
}

}  // namespace csm

PYBIND11_MODULE(_native, m) {
  m.doc() = "The two towers and the Mimi codec of csm_hybrid, on quantised and float weights.";
  csm::watch_for_exit();
  csm::bind_runtime(m);
  csm::bind_configs(m);
  csm::bind_mimi(m);
  csm::bind_backbone(m);
  csm::bind_sampler(m);
  csm::bind_tables(m);
  csm::bind_depth_decoder(m);
  csm::bind_kernels(m);
  csm::bind_dense(m);
  csm::bind_machine(m);
}
