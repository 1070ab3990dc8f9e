// Memory for weights, caches and scratch: zeroed, aligned, and on huge pages where that helps.
#pragma once

#include <cstddef>
#include <cstdint>

namespace csm {

enum class Pages {
  huge,   // where the system grants them: for what is read from end to end. With small ones, looking up addresses takes
          // a fifth of the time of reading weights.
  small,  // taken from the system as they are first touched: for what fills up slowly
};

// A block of zeros, aligned to a cache line; from kHugePage on, to pages.
class Memory {
 public:
  static constexpr std::size_t kHugePage = std::size_t{2} << 20;

  Memory() = default;
  explicit Memory(std::size_t bytes, Pages pages = Pages::huge);  // throws std::bad_alloc
  ~Memory();
  Memory(Memory &&other) noexcept;
  Memory &operator=(Memory &&other) noexcept;

  std::uint8_t *data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::uint8_t *data_ = nullptr;
  std::size_t size_ = 0;    // as asked for
  std::size_t mapped_ = 0;  // bytes that the system gave; 0 where the block is from the heap
};

// The same for floats.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t floats, Pages pages = Pages::huge) : memory_(floats * sizeof(float), pages) {}

  float *data() { return reinterpret_cast<float *>(memory_.data()); }
  const float *data() const { return reinterpret_cast<const float *>(memory_.data()); }
  std::size_t size() const { return memory_.size() / sizeof(float); }

  // At least this many floats; contents are lost when it grows.
  void need(std::size_t floats) {
    if (floats > size()) *this = Buffer(floats);
  }

 private:
  Memory memory_;
};

}  // namespace csm
