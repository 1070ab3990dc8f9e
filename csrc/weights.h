// Model weights as they come from a file, and as the kernels take them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "foundation/memory.h"
#include "kernels/kernels.h"
#include "foundation/quant_blocks.h"
#include "foundation/thread_pool.h"

namespace csm {

// A tensor in a file: row-major, rows of whole quantisation blocks. Does not own its data.
struct TensorSource {
  TensorType type;
  std::vector<std::int64_t> shape;  // slowest dimension first
  const std::uint8_t *data;
  std::size_t bytes;
};
using TensorMap = std::map<std::string, TensorSource>;

// Takes tensors out of a map by name, type and shape, and collects all that is wrong with them.
class TensorReader {
 public:
  explicit TensorReader(const TensorMap &tensors) : tensors_(tensors) {}

  // The tensor, or null after noting the problem.
  const TensorSource *take(const std::string &name, const std::vector<std::int64_t> &shape, bool optional = false);
  void problem(const std::string &text) { problems_.push_back(text); }

  // Throws std::invalid_argument that lists every problem.
  void check() const;

 private:
  const TensorMap &tensors_;
  std::vector<std::string> problems_;
};

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
