// From a GGUF tensor's rows to the panels of kernels.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace csm {

// Bytes of one panel of 16 rows; a multiple of 64.
std::size_t panel_bytes(TensorType type, int cols);

// Packs rows [16 group, 16 group + 16) of a tensor of `rows` rows into one panel of panel_bytes(type, cols).
void pack_panel(TensorType type, const std::uint8_t *tensor, int rows, int cols, int group, std::uint8_t *panel);

}  // namespace csm
