// Tensors on their own: a table of embeddings, and a matrix to multiply by.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/gil_release.h"
#include "linear.h"
#include "weights.h"

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

std::unique_ptr<Linear> make_linear(const py::object &data, int type, int rows, int cols,
                                    std::shared_ptr<ThreadPool> pool) {
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

}  // namespace

void bind_tables(py::module_ &m) {
  py::class_<OwnedTable>(
      m, "EmbeddingTable",
      "Rows of a (rows, cols) tensor of any supported GGML type, looked up and summed in float32.\n\n"
      "data: (bytes,) uint8 in the file's layout; it is read in place, not copied.\n"
      "Raises ValueError for an unsupported type or a size that does not fit the shape.")
      .def(py::init(&make_table), py::kw_only(), py::arg("data"), py::arg("type"), py::arg("rows"), py::arg("cols"))
      .def(
          "sum_rows", &sum_rows, py::arg("ids"),
          "ids: (B, n) int64. Returns (B, cols) float32, the sum over n in order.\n\nRaises IndexError for a row that is "
          "not there.")
      .def_property_readonly("rows", [](const OwnedTable &self) { return self.table.rows; })
      .def_property_readonly("cols", [](const OwnedTable &self) { return self.table.cols; });

  py::class_<Linear>(m, "Linear",
                     "A (rows, cols) tensor of any supported GGML type, packed for products.\n\n"
                     "data: (bytes,) uint8 in the file's layout; it is not kept.\n"
                     "Raises ValueError for an unsupported type or a size that does not fit the shape.")
      .def(py::init(&make_linear), py::kw_only(), py::arg("data"), py::arg("type"), py::arg("rows"), py::arg("cols"),
           py::arg("pool").none(false))
      .def("multiply", &multiply, py::arg("x"),
           "x: (n, cols) float32. Returns (n, rows) float32, each row the product.");
}

}  // namespace csm
