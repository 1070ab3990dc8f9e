// Weights as the towers' kernels take them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "foundation/memory.h"
#include "foundation/quant_blocks.h"
#include "foundation/tensors.h"
#include "foundation/thread_pool.h"
#include "kernels/kernels.h"

namespace csm {

// Rows that are looked up, not multiplied: kept in the file's own format and place.
struct EmbeddingTable {
  TensorType type;
  std::int64_t rows;
  int cols;
  const std::uint8_t *data;

  void row(std::int64_t index, float *out) const;  // out: (cols,)
};

// Memory that holds all packed matrices of a part.
class WeightArena {
 public:
  // Once, before any pack(). Throws std::bad_alloc.
  void reserve(std::size_t bytes) { memory_ = Memory(bytes); }

  // Packs rows [first_row, first_row + rows) of a (..., cols) tensor on all threads of the pool.
  PanelMatrix pack(const TensorSource &tensor, std::int64_t first_row, int rows, int cols, ThreadPool &pool);

  static std::size_t packed_bytes(TensorType type, int rows, int cols);

 private:
  Memory memory_;
  std::size_t used_ = 0;
};

}  // namespace csm
