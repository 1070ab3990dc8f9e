// The innermost loops of csrc/machine.h, one table per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace csm {

struct MachineKernels {
  // Loads every byte of left[0, bytes) and right[0, bytes), 64-byte aligned, bytes a multiple of 64, side by
  // side: two streams keep more of the prefetchers busy than one. The result depends on all of them, so that no
  // load can be left out.
  uint64_t (*read)(const uint8_t *left, const uint8_t *right, size_t bytes);

  // `rounds` rounds of independent chains of multiply-adds that stay in registers.
  float (*f32)(long rounds);
  long f32_ops;  // operations a round

  // The same for dot products of bytes, with the instructions that the decoder's kernels use.
  int32_t (*int8)(long rounds);
  long int8_ops;
};

extern const MachineKernels kMachineScalar;
#if defined(__x86_64__)
extern const MachineKernels kMachineAvx2;
extern const MachineKernels kMachineAvx2Vnni;
extern const MachineKernels kMachineAvx512;
extern const MachineKernels kMachineAvx512Vnni;
#elif defined(__aarch64__)
extern const MachineKernels kMachineNeon;
extern const MachineKernels kMachineNeonDotprod;
#endif

}  // namespace csm

// Makes a register's value unknown to the compiler, which could otherwise hoist the work out of its loop.
#define CSM_OPAQUE_X86(value) __asm__ __volatile__("" : "+v"(value))
#define CSM_OPAQUE_NEON(value) __asm__ __volatile__("" : "+w"(value))
