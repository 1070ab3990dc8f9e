// The instruction set is chosen once, at the first use, for all kernel tables.
//
// CSM_HYBRID_ISA=scalar|avx2|avx2_vnni|avx512|avx512_vnni|neon|neon_dotprod forces it; a name that the CPU
// (or this build) lacks is an error, never a silent fallback.
#pragma once

#include <string>
#include <vector>

namespace csm {

enum class Isa : int {
  scalar,
  avx2,          // AVX2, FMA, F16C
  avx2_vnni,     // avx2 with AVX-VNNI
  avx512,        // AVX-512 F, BW, DQ, VL
  avx512_vnni,   // avx512 with VNNI
  neon,          // AArch64 baseline
  neon_dotprod,  // with the dot-product extension
};

const char *isa_name(Isa isa);

// Throws std::invalid_argument for an unknown name.
Isa isa_from_name(const std::string &name);

// What this CPU and this build can run, worst first; always holds Isa::scalar.
std::vector<Isa> available_isas();

// The one of that name. Throws std::invalid_argument where the CPU or this build lacks it.
Isa available_isa(const std::string &name);

// The one in force: the environment variable's, else the best available.
// Throws std::runtime_error when the variable asks for one that is not available.
Isa active_isa();

}  // namespace csm
