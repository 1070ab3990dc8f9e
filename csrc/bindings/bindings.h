// The only folder that knows pybind11: every part of the module checks dtypes and shapes and
// releases the GIL around the work.
#pragma once

#include <pybind11/pybind11.h>

namespace csm {

void bind_runtime(pybind11::module_ &m);   // instruction sets, thread pool
void bind_configs(pybind11::module_ &m);   // sizes of models and their rules
void bind_mimi(pybind11::module_ &m);      // the codec
void bind_backbone(pybind11::module_ &m);  // the backbone
void bind_depth_decoder(pybind11::module_ &m);
void bind_sampler(pybind11::module_ &m);
void bind_tables(pybind11::module_ &m);   // embedding table, single matrix
void bind_kernels(pybind11::module_ &m);  // single kernels, for tests and benchmarks
void bind_dense(pybind11::module_ &m);    // the codec's kernels, for tests
void bind_machine(pybind11::module_ &m);  // what the machine can do at best

}  // namespace csm
