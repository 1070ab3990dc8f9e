#include "foundation/kv_cache.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "foundation/quant_blocks.h"

namespace csm {
namespace {

constexpr int kLineFloats = kLine / 4;
static_assert(kLineFloats == kGroup, "a column of a panel is one cache line");

}  // namespace

void KvCache::check_memory(int caches, int layers, int kv_heads, int head_dim, int positions) {
  const double bytes = 2.0 * caches * layers * kv_heads * head_dim * positions * sizeof(float);
  if (bytes > static_cast<double>(PTRDIFF_MAX)) throw std::bad_alloc();
  // Reserved in one piece: the system refuses more than it has, which it would not notice of one cache after the other.
  // volatile: else a compiler may leave out both malloc and free, and take the memory for granted.
  void *volatile all = std::malloc(static_cast<std::size_t>(bytes));
  if (all == nullptr) throw std::bad_alloc();
  std::free(all);
}

void KvCache::Free::operator()(void *memory) const { std::free(memory); }

KvCache::KvCache(int layers, int kv_heads, int head_dim, int positions)
    : layers_(layers),
      kv_heads_(kv_heads),
      head_dim_(head_dim),
      positions_(positions),
      groups_((positions + kGroup - 1) / kGroup),
      value_rows_((head_dim + kGroup - 1) / kGroup * kGroup) {
  const auto head_floats = static_cast<std::size_t>(groups_) * kGroup * static_cast<std::size_t>(head_dim_ + value_rows_);
  layer_floats_ = head_floats * static_cast<std::size_t>(kv_heads_);
  // calloc: large blocks come as untouched zero pages.
  memory_.reset(static_cast<float *>(std::calloc(layer_floats_ * static_cast<std::size_t>(layers) + kLineFloats, sizeof(float))));
  if (memory_ == nullptr) throw std::bad_alloc();
  const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
  data_ = reinterpret_cast<float *>((address + kLine - 1) / kLine * kLine);
}

// A layer holds, for each key head, its keys by groups of 16 positions, then its values by groups of 16 rows.
float *KvCache::keys_of(int layer, int head) const {
  return data_ + layer_floats_ * static_cast<std::size_t>(layer) +
         layer_floats_ / static_cast<std::size_t>(kv_heads_) * static_cast<std::size_t>(head);
}

float *KvCache::values_of(int layer, int head) const {
  return keys_of(layer, head) + static_cast<std::ptrdiff_t>(groups_) * kGroup * head_dim_;
}

void KvCache::store_keys(int layer, int position, Range rows, const float *keys) {
  each_head(rows, head_dim_, [&](int head, int first, int last) {
    float *out = keys_of(layer, head) + std::ptrdiff_t{position / kGroup} * head_dim_ * kGroup + position % kGroup;
    const float *in = keys + std::ptrdiff_t{head} * head_dim_;
    for (int d = first; d < last; ++d) out[std::ptrdiff_t{d} * kGroup] = in[d];
  });
}

void KvCache::store_values(int layer, int position, Range rows, const float *values) {
  const std::ptrdiff_t panel = std::ptrdiff_t{groups_} * kGroup * kGroup;
  each_head(rows, head_dim_, [&](int head, int first, int last) {
    float *out = values_of(layer, head) + std::ptrdiff_t{position} * kGroup;
    const float *in = values + std::ptrdiff_t{head} * head_dim_;
    for (int d = first; d < last; ++d) out[d / kGroup * panel + d % kGroup] = in[d];
  });
}

// Keys lie by whole groups: a last one that is not full brings along what comes after it, which is stored anew before
// it is read.
template <typename Run>
void KvCache::each_run(int count, const Run &run) const {
  const auto whole = static_cast<std::size_t>((count + kGroup - 1) / kGroup * kGroup);
  const auto key_floats = whole * static_cast<std::size_t>(head_dim_);
  const auto value_floats = static_cast<std::size_t>(count) * kGroup;
  for (int layer = 0; layer < layers_; ++layer)
    for (int head = 0; head < kv_heads_; ++head) {
      run(keys_of(layer, head), key_floats);
      float *values = values_of(layer, head);
      for (int row = 0; row < value_rows_; row += kGroup)
        run(values + static_cast<std::ptrdiff_t>(row) * groups_ * kGroup, value_floats);
    }
}

std::size_t KvCache::saved_floats(int count) const {
  std::size_t total = 0;
  each_run(count, [&](const float *, std::size_t floats) { total += floats; });
  return total;
}

void KvCache::save(int count, float *out) const {
  each_run(count, [&](const float *memory, std::size_t floats) { out = std::copy_n(memory, floats, out); });
}

void KvCache::restore(int count, const float *saved) {
  each_run(count, [&](float *memory, std::size_t floats) {
    std::copy_n(saved, floats, memory);
    saved += floats;
  });
}

PanelMatrix KvCache::keys(int layer, int head, int count) const {
  return {TensorType::f32, count, head_dim_, static_cast<std::size_t>(head_dim_) * kLine,
          reinterpret_cast<const std::uint8_t *>(keys_of(layer, head))};
}

PanelMatrix KvCache::values(int layer, int head, int count) const {
  return {TensorType::f32, head_dim_, count, static_cast<std::size_t>(groups_) * kGroup * kLine,
          reinterpret_cast<const std::uint8_t *>(values_of(layer, head))};
}

}  // namespace csm
