// The keys and values of one stream of positions: a sequence of a tower, or the codec's ring of the latest steps.
#pragma once

#include <algorithm>
#include <cstddef>

#include "foundation/memory.h"
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

struct KvSizes {
  int layers;
  int kv_heads;
  int head_dim;
  int positions;
  // How they lie, as the kernel that attends wants it; multiples of 16 floats. Keys: blocks of so many positions, each
  // (head_dim, key_block). Values: blocks of so many dimensions, each (positions, value_block).
  int key_block;
  int value_block;
};

class KvCache {
 public:
  // Zeros. Memory is taken by the system page by page as positions are stored. Throws std::bad_alloc.
  explicit KvCache(const KvSizes &sizes);

  // Throws std::bad_alloc where the system would not have the memory for so many, once they are full.
  static void check_memory(int caches, const KvSizes &sizes);

  // Some rows of the keys or values (kv_heads * head_dim,) of one position.
  void store_keys(int layer, int position, Range rows, const float *keys);
  void store_values(int layer, int position, Range rows, const float *values);

  // The first block of one key head.
  const float *keys(int layer, int head) const { return memory_.data() + keys_at(layer, head); }
  const float *values(int layer, int head) const { return keys(layer, head) + key_floats_; }

  // A copy of the first `count` positions of all layers, saved_floats(count) values, and back into a cache of the
  // same sizes, which is then as if they had been stored there.
  std::size_t saved_floats(int count) const;
  void save(int count, float *out) const;
  void restore(int count, const float *saved);

  const KvSizes &sizes() const { return sizes_; }
  std::size_t bytes() const { return memory_.size() * sizeof(float); }

 private:
  std::size_t keys_at(int layer, int head) const;
  std::size_t value_block_floats() const;
  // Calls run(offset, floats) for each stretch of memory in which the first `count` positions lie.
  template <typename Run>
  void each_run(int count, const Run &run) const;

  KvSizes sizes_;
  std::size_t key_floats_;   // of one head
  std::size_t head_floats_;  // its keys and values
  Buffer memory_;
};

}  // namespace csm
