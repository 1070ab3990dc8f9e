// Checks of NumPy arguments that the bindings share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

namespace csm {

template <class T>
using Array = pybind11::array_t<T, pybind11::array::c_style>;

inline std::string shape_text(const pybind11::array &array) {
  std::string out = "(";
  for (pybind11::ssize_t i = 0; i < array.ndim(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
  return out + ")";
}

// The argument as a C-contiguous array of T and the wanted shape (-1: any size). Nothing is converted: TypeError for
// another dtype or layout, ValueError for another shape.
template <class T>
Array<T> checked(const pybind11::handle &argument, const char *name, const std::vector<pybind11::ssize_t> &shape) {
  if (!Array<T>::check_(argument)) {
    const std::string dtype = pybind11::str(pybind11::dtype::of<T>());
    throw pybind11::type_error(std::string(name) + " must be a C-contiguous NumPy array of " + dtype);
  }
  auto array = pybind11::reinterpret_borrow<Array<T>>(argument);
  bool fits = array.ndim() == static_cast<pybind11::ssize_t>(shape.size());
  for (std::size_t i = 0; fits && i < shape.size(); ++i)
    fits = shape[i] < 0 || array.shape(static_cast<pybind11::ssize_t>(i)) == shape[i];
  if (fits) return array;
  std::string wanted = "(";
  for (std::size_t i = 0; i < shape.size(); ++i)
    wanted += (i == 0 ? "" : ", ") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  throw pybind11::value_error(std::string(name) + " must have the shape " + wanted + "), not " + shape_text(array));
}

// A C-contiguous array of float32 or float16, of any shape.
struct FloatArray {
  pybind11::array array;
  bool half;
};
inline FloatArray checked_floats(const pybind11::handle &argument, const char *name) {
  if (pybind11::isinstance<pybind11::array>(argument)) {
    auto array = pybind11::reinterpret_borrow<pybind11::array>(argument);
    const bool half = array.dtype().is(pybind11::dtype("e"));
    if ((half || Array<float>::check_(argument)) && (array.flags() & pybind11::array::c_style) != 0)
      return {std::move(array), half};
  }
  throw pybind11::type_error(std::string(name) + " must be a C-contiguous array of float32 or float16");
}

}  // namespace csm
