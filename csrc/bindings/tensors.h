// A model's tensors as Python hands them over.
#pragma once

#include <pybind11/stl.h>

#include <map>
#include <string>

#include "bindings/arrays.h"
#include "foundation/tensors.h"

namespace csm {

// A mapping from names to objects with `type` (GGML id), `shape` (row-major) and `data` ((bytes,) uint8), and the
// arrays kept alive.
struct TensorArguments {
  explicit TensorArguments(const pybind11::object &tensors) {
    for (const auto &item : pybind11::dict(tensors)) {
      const auto name = item.first.cast<std::string>();
      const auto array = checked<std::uint8_t>(item.second.attr("data"), name.c_str(), {-1});
      map[name] = {static_cast<TensorType>(item.second.attr("type").cast<int>()),
                   item.second.attr("shape").cast<std::vector<std::int64_t>>(), array.data(),
                   static_cast<std::size_t>(array.size())};
      arrays[name] = array;
    }
  }

  pybind11::object data(const std::string &name) const { return arrays.at(name); }

  TensorMap map;
  std::map<std::string, pybind11::object> arrays;
};

// Views of NumPy arrays of float32 and float16 by name; the arrays must outlive them.
inline TensorMap float_tensors(const pybind11::dict &arrays) {
  TensorMap out;
  for (const auto &[key, value] : arrays) {
    const auto name = key.cast<std::string>();
    const FloatArray array = checked_floats(value, ("tensor " + name).c_str());
    out[name] = {array.half ? TensorType::f16 : TensorType::f32,
                 {array.array.shape(), array.array.shape() + array.array.ndim()},
                 static_cast<const std::uint8_t *>(array.array.data()),
                 static_cast<std::size_t>(array.array.nbytes())};
  }
  return out;
}

}  // namespace csm
