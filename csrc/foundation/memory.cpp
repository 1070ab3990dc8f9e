#include "foundation/memory.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include <sys/mman.h>

namespace csm {
namespace {

constexpr std::size_t kCacheLine = 64;

std::size_t round_up(std::size_t value, std::size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

std::uint8_t *map(std::size_t bytes) {
  void *base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::uint8_t *>(base);
}

// `bytes`, a multiple of a huge page, aligned to one: one more is mapped, and what is left over is given back.
std::uint8_t *map_huge(std::size_t bytes) {
  std::uint8_t *base = map(bytes + Memory::kHugePage);
  const std::size_t skip =
      (Memory::kHugePage - reinterpret_cast<std::uintptr_t>(base) % Memory::kHugePage) % Memory::kHugePage;
  if (skip > 0) munmap(base, skip);
  if (skip < Memory::kHugePage) munmap(base + skip + bytes, Memory::kHugePage - skip);
#if defined(MADV_HUGEPAGE)
  madvise(base + skip, bytes, MADV_HUGEPAGE);  // only advice: a refusal costs speed, not correctness
#endif
  return base + skip;
}

}  // namespace

Memory::Memory(std::size_t bytes, Pages pages) : size_(bytes) {
  if (bytes == 0) return;
  if (bytes > PTRDIFF_MAX - 2 * kHugePage) throw std::bad_alloc();
  if (bytes < kHugePage) {
    const std::size_t whole = round_up(bytes, kCacheLine);
    data_ = static_cast<std::uint8_t *>(std::aligned_alloc(kCacheLine, whole));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_, 0, whole);
  } else if (pages == Pages::huge) {
    mapped_ = round_up(bytes, kHugePage);
    data_ = map_huge(mapped_);
  } else {
    mapped_ = bytes;
    data_ = map(mapped_);
  }
}

Memory::~Memory() {
  if (mapped_ > 0) munmap(data_, mapped_);
  else std::free(data_);
}

Memory::Memory(Memory &&other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      mapped_(std::exchange(other.mapped_, 0)) {}

Memory &Memory::operator=(Memory &&other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

}  // namespace csm
