// A model's tensors as Python hands them over.
#pragma once

#include <pybind11/stl.h>

#include <map>
#include <string>

#include "weights.h"
#include "bindings/arrays.h"

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

}  // namespace csm
