// The instruction set that the kernels use. The levels are those of ISA_FLAGS in native_build.py: a level is there when
// every feature that its files are compiled for is there. M3EL_CPU_ISA forces a lower one.
#pragma once

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace m3el {

enum class Isa { scalar, avx2, avx512, avx512bf16, amx };

inline const char* isa_name(Isa isa) {
  constexpr const char* names[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx"};
  return names[static_cast<int>(isa)];
}

#if defined(__x86_64__)

// Linux hands out the tile registers on request only; without this the first tile instruction is a SIGILL.
inline bool request_amx() {
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureXtiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
}

inline bool has_isa(Isa isa) {
  __builtin_cpu_init();
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::avx512:
      return has_isa(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::avx512bf16:
      return has_isa(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
    case Isa::amx:
      return has_isa(Isa::avx512) && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
             request_amx();
  }
  return false;
}

inline Isa detect_isa() {
  if (has_isa(Isa::amx)) return Isa::amx;
  // VDPBF16PS runs at twice the rate of fp32 FMA on AMD and at half of it on Intel
  if (has_isa(Isa::avx512bf16) && __builtin_cpu_is("amd")) return Isa::avx512bf16;
  if (has_isa(Isa::avx512)) return Isa::avx512;
  return has_isa(Isa::avx2) ? Isa::avx2 : Isa::scalar;
}

#else

inline bool has_isa(Isa isa) { return isa == Isa::scalar; }
inline Isa detect_isa() { return Isa::scalar; }

#endif

// The level in force: M3EL_CPU_ISA, else the best of this machine. Throws where the machine lacks the forced one.
inline Isa isa() {
  static const Isa best = detect_isa();
  const char* forced = std::getenv("M3EL_CPU_ISA");
  if (forced == nullptr || *forced == '\0') return best;
  for (const Isa level : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512bf16, Isa::amx})
    if (std::strcmp(forced, isa_name(level)) == 0) {
      if (has_isa(level)) return level;
      throw std::runtime_error(std::string("M3EL_CPU_ISA: this machine has no ") + forced + ", its best is " +
                               isa_name(best));
    }
  throw std::runtime_error(
      std::string("M3EL_CPU_ISA: expected scalar, avx2, avx512, avx512bf16 or amx, got ") + forced);
}

}  // namespace m3el
