#include "foundation/kv_cache.h"

#include <cstdint>
#include <new>

namespace csm {
namespace {

std::size_t blocks(int count, int block) { return static_cast<std::size_t>((count + block - 1) / block); }
std::size_t size(int value) { return static_cast<std::size_t>(value); }

}  // namespace

void KvCache::check_memory(int caches, const KvSizes &s) {
  const double bytes = 2.0 * caches * s.layers * s.kv_heads * s.head_dim * s.positions * sizeof(float);
  if (bytes > static_cast<double>(PTRDIFF_MAX)) throw std::bad_alloc();
  // Reserved in one piece: the system refuses more than it has, which it would not notice of one cache after the other.
  const Memory all(static_cast<std::size_t>(bytes), Pages::small);
}

KvCache::KvCache(const KvSizes &sizes) : sizes_(sizes) {
  const KvSizes &s = sizes_;
  key_floats_ = blocks(s.positions, s.key_block) * size(s.key_block) * size(s.head_dim);
  head_floats_ = key_floats_ + blocks(s.head_dim, s.value_block) * value_block_floats();
  memory_ = Buffer(head_floats_ * size(s.kv_heads) * size(s.layers), Pages::small);
}

std::size_t KvCache::value_block_floats() const { return size(sizes_.positions) * size(sizes_.value_block); }

// Head by head, layer by layer, each with its blocks of keys, then those of values.
std::size_t KvCache::keys_at(int layer, int head) const {
  return head_floats_ * (size(layer) * size(sizes_.kv_heads) + size(head));
}

void KvCache::store_keys(int layer, int position, Range rows, const float *keys) {
  const int block = sizes_.key_block, dim = sizes_.head_dim;
  each_head(rows, dim, [&](int head, int first, int last) {
    float *out =
        memory_.data() + keys_at(layer, head) + std::ptrdiff_t{position / block} * dim * block + position % block;
    const float *in = keys + std::ptrdiff_t{head} * dim;
    for (int d = first; d < last; ++d) out[std::ptrdiff_t{d} * block] = in[d];
  });
}

void KvCache::store_values(int layer, int position, Range rows, const float *values) {
  const int block = sizes_.value_block, dim = sizes_.head_dim;
  each_head(rows, dim, [&](int head, int first, int last) {
    float *out = memory_.data() + keys_at(layer, head) + key_floats_ + std::ptrdiff_t{position} * block;
    const float *in = values + std::ptrdiff_t{head} * dim;
    while (first < last) {
      const int end = std::min(last, (first / block + 1) * block);
      std::copy(in + first, in + end, out + size(first / block) * value_block_floats() + first % block);
      first = end;
    }
  });
}

// Keys are copied by whole blocks: beyond `count`, the last one holds what is stored anew before it is read.
template <typename Run>
void KvCache::each_run(int count, const Run &run) const {
  const KvSizes &s = sizes_;
  const std::size_t key_floats = blocks(count, s.key_block) * size(s.key_block) * size(s.head_dim);
  const std::size_t value_floats = size(count) * size(s.value_block);
  for (int layer = 0; layer < s.layers; ++layer)
    for (int head = 0; head < s.kv_heads; ++head) {
      run(keys_at(layer, head), key_floats);
      for (std::size_t block = 0; block < blocks(s.head_dim, s.value_block); ++block)
        run(keys_at(layer, head) + key_floats_ + block * value_block_floats(), value_floats);
    }
}

std::size_t KvCache::saved_floats(int count) const {
  std::size_t total = 0;
  each_run(count, [&](std::size_t, std::size_t floats) { total += floats; });
  return total;
}

void KvCache::save(int count, float *out) const {
  each_run(count, [&](std::size_t at, std::size_t floats) { out = std::copy_n(memory_.data() + at, floats, out); });
}

void KvCache::restore(int count, const float *saved) {
  each_run(count, [&](std::size_t at, std::size_t floats) {
    std::copy_n(saved, floats, memory_.data() + at);
    saved += floats;
  });
}

}  // namespace csm
