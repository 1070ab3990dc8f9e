// The types of tensors that this project reads, by GGML's ids. Plain enough for the kernels' files (kernels/kernels.h).
#pragma once

#include <cstdint>

namespace csm {

// ggml.h, enum ggml_type.
enum class TensorType : std::int32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q4_K = 12,
  q5_K = 13,
  q6_K = 14,
  bf16 = 30,
};

}  // namespace csm
