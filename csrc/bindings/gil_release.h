// Work without the GIL.
#pragma once

#include <pybind11/pybind11.h>

namespace csm {

// Releases the GIL for its lifetime, as pybind11::gil_scoped_release does. At the interpreter's end, however, a daemon
// thread never returns from it: before Python 3.14 the interpreter ends such a thread where it waits for
// the GIL, by unwinding its stack, which no C++ destructor allows ("terminate called").
class GilRelease {
 public:
  GilRelease();
  ~GilRelease();
  GilRelease(const GilRelease &) = delete;
  GilRelease &operator=(const GilRelease &) = delete;

 private:
  PyThreadState *state_;
};

// Notes when the interpreter begins to end. Once, when the module is imported.
void watch_for_exit();

}  // namespace csm
