#include "machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "foundation/isa.h"
#include "foundation/memory.h"
#include "kernels/machine_kernels.h"

namespace csm {
namespace {

constexpr size_t kLine = 64;  // bytes of a cache line

std::atomic<uint64_t> sink;  // takes every result, so that no measured work is without a use

MachineKernels kernels_for(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2: return kMachineAvx2;
#if defined(CSM_HYBRID_AVX_VNNI)
    case Isa::avx2_vnni: {
      MachineKernels out = kMachineAvx2;
      out.int8 = kMachineAvx2Vnni.int8;
      out.int8_ops = kMachineAvx2Vnni.int8_ops;
      return out;
    }
#endif
    case Isa::avx512: return kMachineAvx512;
    case Isa::avx512_vnni: {
      MachineKernels out = kMachineAvx512;
      out.int8 = kMachineAvx512Vnni.int8;
      out.int8_ops = kMachineAvx512Vnni.int8_ops;
      return out;
    }
#elif defined(__aarch64__)
    case Isa::neon: return kMachineNeon;
    case Isa::neon_dotprod: {
      MachineKernels out = kMachineNeon;
      out.int8 = kMachineNeonDotprod.int8;
      out.int8_ops = kMachineNeonDotprod.int8_ops;
      return out;
    }
#endif
    default: return kMachineScalar;
  }
}

void check(int samples, double seconds) {
  if (samples < 1) throw std::invalid_argument("samples must be at least 1, not " + std::to_string(samples));
  if (!(seconds > 0)) throw std::invalid_argument("seconds must be positive");
}

// Calls work(worker, repeats) on all workers with enough repeats to last `seconds`; returns, for each sample,
// how many repeats of one worker fitted into a second.
template <typename Work>
std::vector<double> rates(ThreadPool &pool, int samples, double seconds, const Work &work) {
  const auto elapsed = [&](long repeats) {
    const auto begin = std::chrono::steady_clock::now();
    pool.run([&](int worker) { work(worker, repeats); });
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  long repeats = 1;
  double took = elapsed(repeats);  // also the warm-up
  while (took < seconds) {
    // A tenth more than it should take, so that the next try is the last one.
    const double wanted = static_cast<double>(repeats) * 1.1 * seconds / std::max(took, 1e-9);
    repeats = std::max(repeats + 1, static_cast<long>(std::min(wanted, 1e3 * static_cast<double>(repeats))));
    took = elapsed(repeats);
  }
  std::vector<double> out;
  for (int i = 0; i < samples; ++i) out.push_back(static_cast<double>(repeats) / elapsed(repeats));
  return out;
}

}  // namespace

std::vector<double> measure_read(ThreadPool &pool, size_t bytes, int samples, double seconds) {
  check(samples, seconds);
  const size_t workers = static_cast<size_t>(pool.threads());
  const size_t half = bytes / workers / (2 * kLine) * kLine, each = 2 * half;
  if (half == 0)
    throw std::invalid_argument("a working set of " + std::to_string(bytes) +
                                " bytes is less than two cache lines for each of " + std::to_string(workers) +
                                " threads");
  // Shares lie a page apart, so that no two workers meet in one.
  const size_t stride = (each + 4095) / 4096 * 4096;
  const Memory memory(workers * stride);  // as the weights' is
  uint8_t *const data = memory.data();
  const MachineKernels kernels = kernels_for(active_isa());
  // Non-zero, or the kernel of some systems would map every page to the same one.
  pool.run([&](int worker) { std::memset(data + static_cast<size_t>(worker) * stride, worker + 1, each); });
  std::vector<double> out = rates(pool, samples, seconds, [&](int worker, long repeats) {
    uint64_t sum = 0;
    const uint8_t *mine = data + static_cast<size_t>(worker) * stride;
    for (long r = 0; r < repeats; ++r) sum ^= kernels.read(mine, mine + half, half);
    sink.fetch_xor(sum, std::memory_order_relaxed);
  });
  for (double &rate : out) rate *= static_cast<double>(each * workers);
  return out;
}

std::vector<double> measure_peak(ThreadPool &pool, Arithmetic arithmetic, int samples, double seconds) {
  check(samples, seconds);
  constexpr long kRounds = 1000;
  const MachineKernels kernels = kernels_for(active_isa());
  const bool f32 = arithmetic == Arithmetic::f32;
  std::vector<double> out = rates(pool, samples, seconds, [&](int, long repeats) {
    const uint64_t sum = f32 ? static_cast<uint64_t>(kernels.f32(kRounds * repeats))
                             : static_cast<uint64_t>(kernels.int8(kRounds * repeats));
    sink.fetch_xor(sum, std::memory_order_relaxed);
  });
  for (double &rate : out)
    rate *= static_cast<double>((f32 ? kernels.f32_ops : kernels.int8_ops) * kRounds * pool.threads());
  return out;
}

}  // namespace csm
