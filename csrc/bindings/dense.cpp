// The codec's kernels one by one, for tests and benchmarks.
#include "bindings/arrays.h"
#include "bindings/bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "foundation/isa.h"
#include "mimi/matrix.h"

namespace py = pybind11;

namespace csm {
namespace {

void require(bool holds, const char *rule) {
  if (!holds) throw std::invalid_argument(rule);
}

Activation activation_of(const std::string &name) {
  if (name == "elu") return Activation::elu;
  if (name == "gelu") return Activation::gelu;
  require(name == "none", "activation must be none, elu or gelu");
  return Activation::none;
}

mimi::Matrix pack_any(const FloatArray &w, int n, int k, const float *bias, const DenseKernels &kernels) {
  if (w.half) return mimi::pack(static_cast<const uint16_t *>(w.array.data()), mimi::row_major(n, k), bias, kernels);
  return mimi::pack(static_cast<const float *>(w.array.data()), mimi::row_major(n, k), bias, kernels);
}

// The data of an optional array; null where there is none.
const float *checked_or_null(const py::object &argument, const char *name, const std::vector<py::ssize_t> &shape) {
  return argument.is_none() ? nullptr : checked<float>(argument, name, shape).data();
}

py::tuple matmul(const std::string &isa, const py::object &x_argument, const py::object &w_argument,
                 const py::object &bias_argument, const py::object &skip_argument, const py::object &scale_argument,
                 const std::string &activation) {
  const DenseKernels &kernels = dense_kernels(available_isa(isa));
  const auto x = checked<float>(x_argument, "x", {-1, -1});
  const FloatArray w = checked_floats(w_argument, "w");
  require(w.array.ndim() == 2 && x.shape(1) == w.array.shape(1), "x must be (M, K), w (N, K)");
  const int m = static_cast<int>(x.shape(0)), n = static_cast<int>(w.array.shape(0)), k = static_cast<int>(x.shape(1));
  const auto bias = checked<float>(bias_argument, "bias", {n});
  const float *skip = checked_or_null(skip_argument, "skip", {m, n});
  const float *scale = checked_or_null(scale_argument, "scale", {n});
  require(n > 1 || (skip == nullptr && activation == "none" && !w.half),
          "a single output has neither skip nor activation nor float16 weights");
  const mimi::Matrix matrix = pack_any(w, n, k, bias.data(), kernels);
  const PackedMatrix view = matrix.view();
  Array<float> raw({m, n}), active({m, n});
  const Rows nowhere = {nullptr, 1, 0, 0};
  const DenseMatMul p = {&view,
                         {x.data(), m, k, 0},
                         {skip, m, n, 0},
                         scale,
                         {raw.mutable_data(), m, n, 0},
                         n > 1 ? Rows{active.mutable_data(), m, n, 0} : nowhere,
                         activation_of(activation)};
  for (int panel = 0; panel < dense_panels(kernels, n); ++panel) kernels.multiply(p, panel, 0, m);
  return n > 1 ? py::make_tuple(raw, active) : py::make_tuple(raw, raw);
}

Array<float> layer_norm(const std::string &isa, const py::object &x_argument, const py::object &gamma_argument,
                        const py::object &beta_argument, float eps) {
  const DenseKernels &kernels = dense_kernels(available_isa(isa));
  const auto x = checked<float>(x_argument, "x", {-1});
  const auto gamma = checked<float>(gamma_argument, "gamma", {x.size()});
  const auto beta = checked<float>(beta_argument, "beta", {x.size()});
  Array<float> y(x.size());
  kernels.layer_norm(x.data(), gamma.data(), beta.data(), eps, static_cast<int>(x.size()), y.mutable_data());
  return y;
}

Array<float> attend(const std::string &isa, const py::object &q_argument, const py::object &keys_argument,
                    const py::object &values_argument) {
  const DenseKernels &kernels = dense_kernels(available_isa(isa));
  const auto q = checked<float>(q_argument, "q", {-1});
  const auto keys = checked<float>(keys_argument, "keys", {-1, q.size()});
  const auto values = checked<float>(values_argument, "values", {keys.shape(0), q.size()});
  const int d = static_cast<int>(q.size()), positions = static_cast<int>(keys.shape(0));
  require(positions > 0, "keys must not be empty");
  const int key_stride = (positions + 15) / 16 * 16, value_stride = (d + 15) / 16 * 16;
  Buffer packed_keys(static_cast<size_t>(d * key_stride));
  Buffer packed_values(static_cast<size_t>(positions * value_stride));
  Buffer scores(static_cast<size_t>(key_stride)), out(static_cast<size_t>(value_stride));
  for (int s = 0; s < positions; ++s)
    for (int i = 0; i < d; ++i) {
      packed_keys.data()[i * key_stride + s] = keys.data()[s * d + i];
      packed_values.data()[s * value_stride + i] = values.data()[s * d + i];
    }
  kernels.attend({q.data(), packed_keys.data(), packed_values.data(), scores.data(), out.data(), d, positions,
                  key_stride, value_stride, 1.0f});
  Array<float> y(d);
  std::copy_n(out.data(), d, y.mutable_data());
  return y;
}

}  // namespace

void bind_dense(py::module_ &m) {
  m.def("dense_matmul", &matmul, py::kw_only(), py::arg("isa"), py::arg("x"), py::arg("w"), py::arg("bias"),
        py::arg("skip") = py::none(), py::arg("scale") = py::none(), py::arg("activation") = "none",
        "(raw, activated), both (M, N): raw = x (M, K) w (N, K)^T + bias (N,), or skip (M, N) + scale (N,) * that.");
  m.def("dense_layer_norm", &layer_norm, py::kw_only(), py::arg("isa"), py::arg("x"), py::arg("gamma"), py::arg("beta"),
        py::arg("eps"), "Layer norm of (n,) values.");
  m.def("dense_attend", &attend, py::kw_only(), py::arg("isa"), py::arg("q"), py::arg("keys"), py::arg("values"),
        "softmax(q . keys) . values: q (d,), keys and values (positions, d).");
}

}  // namespace csm
