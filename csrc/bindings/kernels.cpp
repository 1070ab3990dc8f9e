// Single kernels of one instruction set, for tests and benchmarks.
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "foundation/isa.h"
#include "kernels/kernels.h"
#include "weights.h"

namespace py = pybind11;

namespace csm {
namespace {

std::vector<XBlock> rounded(const KernelTable &table, const float *x, int n, int cols) {
  const int blocks = cols / kBlock;
  std::vector<XBlock> out(static_cast<std::size_t>(blocks) * static_cast<std::size_t>(n));
  if (!out.empty())
    for (int b = 0; b < n; ++b)
      table.quantise(x + static_cast<std::ptrdiff_t>(b) * cols, blocks, &out[static_cast<std::size_t>(b)], n);
  return out;
}

Array<float> product(const std::string &isa, const py::object &data_argument, int type, int rows, int cols,
                     const py::object &x_argument) {
  const KernelTable &table = kernels(available_isa(isa));
  const auto data = checked<std::uint8_t>(data_argument, "data", {-1});
  const auto x = checked<float>(x_argument, "x", {-1, cols});
  const TensorMap map{
      {"data", {static_cast<TensorType>(type), {rows, cols}, data.data(), static_cast<std::size_t>(data.size())}}};
  TensorReader reader(map);
  const TensorSource *source = reader.take("data", {rows, cols});
  reader.check();
  ThreadPool pool(1);
  WeightArena arena;
  arena.reserve(WeightArena::packed_bytes(source->type, rows, cols));
  const PanelMatrix matrix = arena.pack(*source, 0, rows, cols, pool);
  const int n = static_cast<int>(x.shape(0)), stride = matrix.padded_rows();
  std::vector<float> out(static_cast<std::size_t>(n) * static_cast<std::size_t>(stride));
  if (type_info(source->type)->quantised)
    table.matmul_quantised(matrix, 0, matrix.groups(), rounded(table, x.data(), n, cols).data(), n, out.data(), stride,
                           matrix.panels);
  else table.matmul_float(matrix, 0, matrix.groups(), x.data(), cols, n, out.data(), stride, matrix.panels);
  Array<float> result({static_cast<py::ssize_t>(n), static_cast<py::ssize_t>(rows)});
  for (int b = 0; b < n; ++b)
    std::copy_n(out.data() + static_cast<std::ptrdiff_t>(b) * stride, rows, result.mutable_data(b, 0));
  return result;
}

py::tuple round_activations(const std::string &isa, const py::object &x_argument) {
  const auto x = checked<float>(x_argument, "x", {-1});
  if (x.size() % kBlock != 0) throw py::value_error("x must be whole blocks of 32");
  const std::vector<XBlock> blocks = rounded(kernels(available_isa(isa)), x.data(), 1, static_cast<int>(x.size()));
  Array<std::int8_t> q(x.size());
  Array<float> scale(x.size() / kBlock);
  for (std::size_t k = 0; k < blocks.size(); ++k) {
    std::copy_n(blocks[k].q, kBlock, q.mutable_data(static_cast<py::ssize_t>(k * kBlock)));
    scale.mutable_at(static_cast<py::ssize_t>(k)) = blocks[k].scale;
  }
  return py::make_tuple(q, scale);
}

// Which: "rms_norm" (a: x, b: weight, eps 1e-5), "silu_mul" (a: gate, b: up), "softmax" (a), "add_scaled" (b + 0.5 a).
Array<float> vector_operation(const std::string &isa, const std::string &name, const py::object &a_argument,
                              const py::object &b_argument) {
  const KernelTable &table = kernels(available_isa(isa));
  const auto a = checked<float>(a_argument, "a", {-1});
  const auto b = checked<float>(b_argument, "b", {a.size()});
  const int n = static_cast<int>(a.size());
  Array<float> out(a.size());
  float *result = out.mutable_data();
  if (name == "rms_norm") {
    table.rms_norm(a.data(), b.data(), n, 1e-5f, result);
  } else if (name == "silu_mul") {
    table.silu_mul(a.data(), b.data(), n, result);
  } else if (name == "softmax") {
    std::copy_n(a.data(), n, result);
    table.softmax(result, n);
  } else if (name == "add_scaled") {
    std::copy_n(b.data(), n, result);
    table.add_scaled(0.5f, a.data(), n, result);
  } else {
    throw py::value_error("unknown vector operation '" + name + "'");
  }
  return out;
}

}  // namespace

void bind_kernels(py::module_ &m) {
  m.def("kernel_matmul", &product, py::kw_only(), py::arg("isa"), py::arg("data"), py::arg("type"), py::arg("rows"),
        py::arg("cols"), py::arg("x"),
        "x (n, cols) float32 times the transpose of a (rows, cols) tensor of a GGML type: (n, rows) float32.\n"
        "For quantised types x is first rounded to int8 in blocks of 32.");
  m.def("kernel_round", &round_activations, py::kw_only(), py::arg("isa"), py::arg("x"),
        "The int8 values (n,) and scales (n / 32,) float32 to which activations (n,) float32 are rounded.");
  m.def("kernel_vector", &vector_operation, py::kw_only(), py::arg("isa"), py::arg("name"), py::arg("a"), py::arg("b"),
        "One of the vector operations rms_norm, silu_mul, softmax, add_scaled on a and b (n,) float32.");
}

}  // namespace csm
