// What code that is compiled with -fsanitize=thread,alignment,bounds calls before its accesses. Whether they are
// unaligned, volatile and so on makes no difference here.
#include <cstdint>
#include <cstring>

#include "machine.h"

#define HOOK extern "C" void
#define CODE __builtin_return_address(0)
#define ACCESSES(infix, bytes)                                                                     \
  HOOK __tsan_##infix##read##bytes(void* p) { cuda_host::check_read(p, bytes, CODE); }             \
  HOOK __tsan_##infix##write##bytes(void* p) { cuda_host::check_write(p, bytes, CODE); }
#define UPDATES(infix, bytes)                      \
  HOOK __tsan_##infix##read_write##bytes(void* p) { \
    cuda_host::check_read(p, bytes, CODE);         \
    cuda_host::check_write(p, bytes, CODE);        \
  }
#define ALL(bytes)                                                              \
  ACCESSES(, bytes) ACCESSES(unaligned_, bytes) ACCESSES(volatile_, bytes)      \
  ACCESSES(unaligned_volatile_, bytes) UPDATES(, bytes) UPDATES(unaligned_, bytes)
ALL(1) ALL(2) ALL(4) ALL(8) ALL(16)
HOOK __tsan_read_range(void* p, unsigned long bytes) { cuda_host::check_read(p, bytes, CODE); }
HOOK __tsan_write_range(void* p, unsigned long bytes) { cuda_host::check_write(p, bytes, CODE); }
extern "C" void* __tsan_memset(void* p, int value, unsigned long bytes) {
  cuda_host::check_write(p, bytes, CODE);
  return std::memset(p, value, bytes);
}
extern "C" void* __tsan_memcpy(void* to, const void* from, unsigned long bytes) {
  cuda_host::check_read(from, bytes, CODE);
  cuda_host::check_write(to, bytes, CODE);
  return std::memcpy(to, from, bytes);
}
extern "C" void* __tsan_memmove(void* to, const void* from, unsigned long bytes) {
  cuda_host::check_read(from, bytes, CODE);
  cuda_host::check_write(to, bytes, CODE);
  return std::memmove(to, from, bytes);
}
HOOK __tsan_init() {}
HOOK __tsan_func_entry(void*) {}
HOOK __tsan_func_exit() {}
HOOK __tsan_vptr_update(void**, void*) {}
HOOK __tsan_vptr_read(void**) {}

// Atomics of host code in the sources, such as the guards of its static variables; kernels have none of these.
#define HOST_ATOMIC(type, name, parameters, builtin, arguments) \
  extern "C" type __tsan_atomic##name parameters { return __atomic_##builtin arguments; }
#define HOST_ATOMICS(bits, T)                                                                                     \
  HOST_ATOMIC(T, bits##_load, (const volatile T* p, int), load_n, (p, __ATOMIC_SEQ_CST))                          \
  HOST_ATOMIC(void, bits##_store, (volatile T * p, T v, int), store_n, (p, v, __ATOMIC_SEQ_CST))                  \
  HOST_ATOMIC(T, bits##_exchange, (volatile T * p, T v, int), exchange_n, (p, v, __ATOMIC_SEQ_CST))               \
  HOST_ATOMIC(T, bits##_fetch_add, (volatile T * p, T v, int), fetch_add, (p, v, __ATOMIC_SEQ_CST))               \
  HOST_ATOMIC(T, bits##_fetch_sub, (volatile T * p, T v, int), fetch_sub, (p, v, __ATOMIC_SEQ_CST))               \
  HOST_ATOMIC(int, bits##_compare_exchange_strong, (volatile T * p, T * old, T v, int, int), compare_exchange_n, \
              (p, old, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
HOST_ATOMICS(8, uint8_t)
HOST_ATOMICS(32, uint32_t)
HOST_ATOMICS(64, uint64_t)

// A pointer of a type that asks for more alignment than the address has.
HOOK __ubsan_handle_type_mismatch_v1(void* data, uint64_t address) {
  struct Mismatch {
    const char* file;
    uint32_t line, column;
    const void* type;
    uint8_t log_alignment;
  };
  cuda_host::refuse_misaligned(address, 1u << static_cast<Mismatch*>(data)->log_alignment, CODE);
}

// An index outside of an array whose size the compiler knows: only this guards a thread's own arrays.
HOOK __ubsan_handle_out_of_bounds(void*, uint64_t index) { cuda_host::refuse_index(index, CODE); }
