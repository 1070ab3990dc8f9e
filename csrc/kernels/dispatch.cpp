#include <stdexcept>

#include "foundation/isa.h"
#include "kernels/kernels.h"

namespace csm {

const KernelTable &kernels(Isa isa) {
  switch (isa) {
    case Isa::scalar: return kScalarKernels;
#if defined(__x86_64__)
    case Isa::avx2: return kAvx2Kernels;
#if defined(CSM_HYBRID_AVX_VNNI)
    case Isa::avx2_vnni: return kAvx2VnniKernels;
#endif
    case Isa::avx512: return kAvx512Kernels;
    case Isa::avx512_vnni: return kAvx512VnniKernels;
#elif defined(__aarch64__)
    case Isa::neon: return kNeonKernels;
    case Isa::neon_dotprod: return kNeonDotprodKernels;
#endif
    default: throw std::invalid_argument("this build has no kernels for " + std::string(isa_name(isa)));
  }
}

const KernelTable &kernels() {
  static const KernelTable &table = kernels(active_isa());
  return table;
}

}  // namespace csm
