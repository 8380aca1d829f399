// The instruction set that the kernels may use on this machine. The levels are those of ISA_FLAGS in native_build.py: a
// level is there when every feature that its files are compiled for is there.
#pragma once

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace m3el {

enum class Isa { scalar, avx2, avx512, amx };

#if defined(__x86_64__)

// Linux hands out the tile registers on request only; without this the first tile instruction is a SIGILL.
inline bool request_amx() {
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureXtiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
}

inline Isa detect_isa() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
    return Isa::scalar;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return Isa::avx2;
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512fp16") ||
      !__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-bf16") || !request_amx())
    return Isa::avx512;
  return Isa::amx;
}

#else

inline Isa detect_isa() { return Isa::scalar; }

#endif

inline Isa isa() {
  static const Isa level = detect_isa();
  return level;
}

}  // namespace m3el
