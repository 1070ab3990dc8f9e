#include "foundation/isa.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace csm {
namespace {

struct Name {
  Isa isa;
  const char *name;
};

constexpr Name kNames[] = {
    {Isa::scalar, "scalar"},
    {Isa::avx2, "avx2"},
    {Isa::avx2_vnni, "avx2_vnni"},
    {Isa::avx512, "avx512"},
    {Isa::avx512_vnni, "avx512_vnni"},
    {Isa::neon, "neon"},
    {Isa::neon_dotprod, "neon_dotprod"},
};

#if defined(__x86_64__)
// Older clangs do not know "f16c" as a name for __builtin_cpu_supports: CPUID leaf 1, ECX bit 29.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
}

#if defined(CSM_HYBRID_AVX_VNNI_AS_EVEX)
bool has_avx_vnni() { return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl"); }
#elif defined(CSM_HYBRID_AVX_VNNI)
// CPUID leaf 7, subleaf 1, EAX bit 4: compilers learned a name for it late.
bool has_avx_vnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 4)) != 0;
}
#else
bool has_avx_vnni() { return false; }
#endif
#endif

std::string names(const std::vector<Isa> &isas) {
  std::string out;
  for (Isa isa : isas) out += (out.empty() ? "" : ", ") + std::string(isa_name(isa));
  return out;
}

Isa choose() {
  const std::vector<Isa> have = available_isas();
  const char *forced = std::getenv("CSM_HYBRID_ISA");
  if (forced == nullptr || *forced == '\0') return have.back();
  for (const Isa isa : have)
    if (std::string(forced) == isa_name(isa)) return isa;
  throw std::runtime_error("CSM_HYBRID_ISA is " + std::string(forced) +
                           ", which is none of what this CPU has: " + names(have));
}

}  // namespace

const char *isa_name(Isa isa) {
  for (const Name &n : kNames)
    if (n.isa == isa) return n.name;
  return "?";
}

Isa isa_from_name(const std::string &name) {
  std::string known;
  for (const Name &n : kNames) {
    if (name == n.name) return n.isa;
    known += (known.empty() ? "" : ", ") + std::string(n.name);
  }
  throw std::invalid_argument("unknown instruction set '" + name + "'; known: " + known);
}

std::vector<Isa> available_isas() {
  std::vector<Isa> out{Isa::scalar};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
    out.push_back(Isa::avx2);
    if (has_avx_vnni()) out.push_back(Isa::avx2_vnni);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      out.push_back(Isa::avx512);
      if (__builtin_cpu_supports("avx512vnni")) out.push_back(Isa::avx512_vnni);
    }
  }
#elif defined(__aarch64__)
  out.push_back(Isa::neon);
#if defined(__linux__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) out.push_back(Isa::neon_dotprod);
#elif defined(__APPLE__)
  out.push_back(Isa::neon_dotprod);  // every Apple silicon has it
#endif
#endif
  return out;
}

Isa available_isa(const std::string &name) {
  const Isa isa = isa_from_name(name);
  const std::vector<Isa> have = available_isas();
  for (const Isa each : have)
    if (each == isa) return isa;
  throw std::invalid_argument("instruction set " + name + " is not available; this CPU has " + names(have));
}

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace csm
