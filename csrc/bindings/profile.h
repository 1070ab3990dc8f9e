// Where the time of a part goes, as Python sees it.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/gil_release.h"
#include "foundation/profile.h"

namespace csm {

inline constexpr const char *kMeasureDoc = "Measures every pass from now on, anew, or stops; what was found stays.";
inline constexpr const char *kPartsDoc =
    "What measure(on=True) found so far: part to seconds, less a thread's mean wait at barriers, which is `barriers`.";
inline constexpr const char *kStagesDoc =
    "What measure(on=True) found so far: stage to (seconds, flops of matrix products, bytes of weights they read).";

template <class Part>
void measure(Part &part, bool on) {
  const GilRelease gil_release;
  part.measure(on);
}

template <class Part>
ProfileResult profile(const Part &part) {
  const GilRelease gil_release;
  return part.profile();
}

inline pybind11::dict parts_of(const ProfileResult &result) {
  pybind11::dict out;
  for (const auto &[stage, time] : result.stages) out[pybind11::str(stage)] = time.seconds;
  out["barriers"] = result.waited;
  return out;
}

inline pybind11::dict stages_of(const ProfileResult &result) {
  pybind11::dict out;
  for (const auto &[stage, time] : result.stages)
    out[pybind11::str(stage)] = pybind11::make_tuple(time.seconds, time.flops, time.weight_bytes);
  return out;
}

}  // namespace csm
