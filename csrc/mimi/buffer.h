// Float storage aligned to cache lines, in huge pages where the system grants them.
#pragma once

#include <cstddef>

namespace csm::mimi {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t floats);  // zeroed; throws std::bad_alloc
  ~Buffer();
  Buffer(Buffer &&other) noexcept;
  Buffer &operator=(Buffer &&other) noexcept;

  float *data() { return data_; }
  const float *data() const { return data_; }
  size_t size() const { return size_; }

  // At least this many floats; contents are lost when it grows.
  void need(size_t floats);

 private:
  float *data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace csm::mimi
