#include "mimi/buffer.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace csm::mimi {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

Buffer::Buffer(size_t floats) : size_(floats) {
  if (floats == 0) return;
  const size_t wanted = floats * sizeof(float);
  const size_t alignment = wanted >= kHugePage ? kHugePage : kCacheLine;
  const size_t bytes = (wanted + alignment - 1) / alignment * alignment;
  data_ = static_cast<float *>(std::aligned_alloc(alignment, bytes));
  if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // A frame reads every weight once: with 4 KiB pages that is tens of thousands of TLB misses.
  if (alignment == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
  std::memset(data_, 0, bytes);
}

Buffer::~Buffer() { std::free(data_); }

Buffer::Buffer(Buffer &&other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer &Buffer::operator=(Buffer &&other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void Buffer::need(size_t floats) {
  if (floats > size_) *this = Buffer(floats);
}

}  // namespace csm::mimi
