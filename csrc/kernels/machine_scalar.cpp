#include "kernels/machine_kernels.h"

#include <cstring>
#include <initializer_list>

namespace csm {
namespace {

constexpr int kLanes = 32;

uint64_t read(const uint8_t *left, const uint8_t *right, size_t bytes) {
  uint64_t sum[8] = {};
  for (size_t i = 0; i < bytes; i += sizeof sum)
    for (const uint8_t *data : {left, right}) {
      uint64_t block[8];
      std::memcpy(block, data + i, sizeof block);
      for (int j = 0; j < 8; ++j) sum[j] ^= block[j];
    }
  uint64_t out = 0;
  for (uint64_t s : sum) out ^= s;
  return out;
}

float f32(long rounds) {
  volatile float half = 0.5f;  // read once, so that the compiler cannot know it
  const float factor = half, addend = half;
  float sum[kLanes] = {};
  for (long r = 0; r < rounds; ++r)
    for (float &s : sum) s = s * factor + addend;
  float out = 0;
  for (float s : sum) out += s;
  return out;
}

int32_t int8(long rounds) {
  int8_t a[kLanes], b[kLanes];
  volatile int8_t seed = 3;
  for (int i = 0; i < kLanes; ++i) a[i] = b[i] = static_cast<int8_t>(seed + i);
  uint32_t sum[kLanes] = {};  // unsigned: it may wrap around
  for (long r = 0; r < rounds; ++r) {
    for (int i = 0; i < kLanes; ++i) sum[i] += static_cast<uint32_t>(a[i] * b[i]);
    __asm__ __volatile__("" : : "r"(a), "r"(b) : "memory");
  }
  uint32_t out = 0;
  for (uint32_t s : sum) out ^= s;
  return static_cast<int32_t>(out);
}

}  // namespace

const MachineKernels kMachineScalar = {read, f32, 2 * kLanes, int8, 2 * kLanes};

}  // namespace csm
