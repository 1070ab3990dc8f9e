// The keys and values of one sequence, laid out as the packed matrices that attention multiplies by.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/kernels.h"
#include "foundation/thread_pool.h"

namespace csm {

// Calls work(head, first, last) for each head that some rows belong to: of its head_dim rows, [first, last).
template <class Work>
void each_head(Range rows, int head_dim, const Work &work) {
  for (int row = rows.begin; row < rows.end;) {
    const int head = row / head_dim, first = row % head_dim, last = std::min(head_dim, first + rows.end - row);
    work(head, first, last);
    row += last - first;
  }
}

class KvCache {
 public:
  // Zeros. Memory is taken by the system page by page as positions are stored. Throws std::bad_alloc.
  KvCache(int layers, int kv_heads, int head_dim, int positions);

  // Throws std::bad_alloc where the system would not have the memory for that many, once they are full.
  static void check_memory(int caches, int layers, int kv_heads, int head_dim, int positions);

  // Some rows of the keys or values (kv_heads * head_dim,) of one position; f32.
  void store_keys(int layer, int position, Range rows, const float *keys);
  void store_values(int layer, int position, Range rows, const float *values);

  // Of the first `count` positions, for one key head: keys (count, head_dim) and transposed values (head_dim, count).
  PanelMatrix keys(int layer, int head, int count) const;
  PanelMatrix values(int layer, int head, int count) const;

  // A copy of the first `count` positions of all layers, saved_floats(count) values, and back into a cache of the
  // same sizes, which is then as if they had been stored there.
  std::size_t saved_floats(int count) const;
  void save(int count, float *out) const;
  void restore(int count, const float *saved);

  int positions() const { return positions_; }

 private:
  struct Free {
    void operator()(void *memory) const;
  };
  float *keys_of(int layer, int head) const;
  float *values_of(int layer, int head) const;
  // Calls run(memory, floats) for each stretch of memory in which the first `count` positions lie.
  template <typename Run>
  void each_run(int count, const Run &run) const;

  int layers_;
  int kv_heads_;
  int head_dim_;
  int positions_;
  int groups_;                          // of 16 positions
  int value_rows_;                      // head_dim rounded up to whole panels
  std::size_t layer_floats_;            // keys and values of one layer
  std::unique_ptr<float, Free> memory_;
  float *data_;                         // its first whole cache line
};

}  // namespace csm
