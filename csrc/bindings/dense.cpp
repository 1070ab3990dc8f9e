// The codec's kernels one by one, for tests and benchmarks.
#include "bindings/bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "foundation/isa.h"
#include "mimi/matrix.h"

namespace py = pybind11;

namespace csm {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

const DenseKernels &kernels_of(const std::string &name) {
  const Isa isa = isa_from_name(name);
  const std::vector<Isa> have = available_isas();
  if (std::find(have.begin(), have.end(), isa) == have.end())
    throw std::invalid_argument("this CPU has no " + name);
  return dense_kernels(isa);
}

void require(bool holds, const char *rule) {
  if (!holds) throw std::invalid_argument(rule);
}

Activation activation_of(const std::string &name) {
  if (name == "elu") return Activation::elu;
  if (name == "gelu") return Activation::gelu;
  require(name == "none", "activation must be none, elu or gelu");
  return Activation::none;
}

mimi::Matrix pack_any(const py::array &w, int n, int k, const float *bias, const DenseKernels &kernels) {
  require(w.flags() & py::array::c_style, "w must be C-contiguous");
  if (w.dtype().is(py::dtype("e")))
    return mimi::pack(static_cast<const uint16_t *>(w.data()), mimi::row_major(n, k), bias, kernels);
  require(w.dtype().is(py::dtype("f")), "w must be float32 or float16");
  return mimi::pack(static_cast<const float *>(w.data()), mimi::row_major(n, k), bias, kernels);
}

py::tuple product(const std::string &isa, const Floats &x, const py::array &w, const Floats &bias,
                  const std::optional<Floats> &skip, const std::optional<Floats> &scale,
                  const std::string &activation) {
  require(x.ndim() == 2 && w.ndim() == 2 && x.shape(1) == w.shape(1), "x must be (M, K), w (N, K)");
  const int m = static_cast<int>(x.shape(0)), n = static_cast<int>(w.shape(0)), k = static_cast<int>(w.shape(1));
  require(bias.ndim() == 1 && bias.shape(0) == n, "bias must be (N,)");
  require(!skip || (skip->ndim() == 2 && skip->shape(0) == m && skip->shape(1) == n), "skip must be (M, N)");
  require(!scale || (scale->ndim() == 1 && scale->shape(0) == n), "scale must be (N,)");
  require(n > 1 || (!skip && activation == "none" && w.itemsize() == sizeof(float)),
          "a single output has neither skip nor activation nor float16 weights");
  const DenseKernels &kernels = kernels_of(isa);
  const mimi::Matrix matrix = pack_any(w, n, k, bias.data(), kernels);
  const PackedMatrix view = matrix.view();
  Floats raw({m, n}), active({m, n});
  const Rows nowhere = {nullptr, 1, 0, 0};
  const DenseMatMul p = {&view,
                     {x.data(), m, k, 0},
                     {skip ? skip->data() : nullptr, m, n, 0},
                     scale ? scale->data() : nullptr,
                     {raw.mutable_data(), m, n, 0},
                     n > 1 ? Rows{active.mutable_data(), m, n, 0} : nowhere,
                     activation_of(activation)};
  for (int panel = 0; panel < dense_panels(kernels, n); ++panel) kernels.multiply(p, panel, 0, m);
  return n > 1 ? py::make_tuple(raw, active) : py::make_tuple(raw, raw);
}

Floats layer_norm(const std::string &isa, const Floats &x, const Floats &gamma, const Floats &beta, float eps) {
  require(x.ndim() == 1 && gamma.ndim() == 1 && beta.ndim() == 1, "x, gamma and beta must be (n,)");
  require(gamma.shape(0) == x.shape(0) && beta.shape(0) == x.shape(0), "x, gamma and beta must have one length");
  Floats y(x.shape(0));
  kernels_of(isa).layer_norm(x.data(), gamma.data(), beta.data(), eps, static_cast<int>(x.shape(0)),
                             y.mutable_data());
  return y;
}

Floats attend(const std::string &isa, const Floats &q, const Floats &keys, const Floats &values) {
  require(q.ndim() == 1 && keys.ndim() == 2 && values.ndim() == 2, "q must be (d,), keys and values (slots, d)");
  const int d = static_cast<int>(q.shape(0)), slots = static_cast<int>(keys.shape(0));
  require(slots > 0 && keys.shape(1) == d && values.shape(1) == d && values.shape(0) == slots,
          "keys and values must be (slots, d)");
  const int key_stride = (slots + 15) / 16 * 16, value_stride = (d + 15) / 16 * 16;
  Buffer packed_keys(static_cast<size_t>(d * key_stride));
  Buffer packed_values(static_cast<size_t>(slots * value_stride));
  Buffer scores(static_cast<size_t>(key_stride)), out(static_cast<size_t>(value_stride));
  for (int s = 0; s < slots; ++s)
    for (int i = 0; i < d; ++i) {
      packed_keys.data()[i * key_stride + s] = keys.data()[s * d + i];
      packed_values.data()[s * value_stride + i] = values.data()[s * d + i];
    }
  kernels_of(isa).attend({q.data(), packed_keys.data(), packed_values.data(), scores.data(), out.data(), d, slots,
                          key_stride, value_stride, 1.0f});
  Floats y(d);
  std::copy_n(out.data(), d, y.mutable_data());
  return y;
}

}  // namespace

void bind_dense(py::module_ &m) {
  m.def("dense_matmul", &product, py::kw_only(), py::arg("isa"), py::arg("x").noconvert(), py::arg("w"),
        py::arg("bias").noconvert(), py::arg("skip") = py::none(), py::arg("scale") = py::none(),
        py::arg("activation") = "none",
        "(raw, activated), both (M, N): raw = x (M, K) w (N, K)^T + bias (N,), or skip (M, N) + scale (N,) * that.");
  m.def("dense_layer_norm", &layer_norm, py::kw_only(), py::arg("isa"), py::arg("x").noconvert(),
        py::arg("gamma").noconvert(), py::arg("beta").noconvert(), py::arg("eps"), "Layer norm of (n,) values.");
  m.def("dense_attend", &attend, py::kw_only(), py::arg("isa"), py::arg("q").noconvert(), py::arg("keys").noconvert(),
        py::arg("values").noconvert(), "softmax(q . keys) . values: q (d,), keys and values (slots, d).");
}

}  // namespace csm
