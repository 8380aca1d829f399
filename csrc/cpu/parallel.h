// How the kernels' drivers get threads and memory; knows nothing of torch, so that a plain program can drive them too.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace m3el {

// Runs body(begin, end) over disjoint ranges that make up [0, count), perhaps at the same time.
struct Parallel {
  int64_t threads;
  std::function<void(int64_t count, const std::function<void(int64_t, int64_t)>& body)> run;
};

struct Free {
  void operator()(char* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<char[], Free>;

// Uninitialised, 64-byte aligned; never null.
inline Buffer allocate(int64_t bytes) {
  const std::size_t rounded = (static_cast<std::size_t>(bytes) + 64) / 64 * 64;
  char* p = static_cast<char*>(std::aligned_alloc(64, rounded));
  if (p == nullptr) throw std::bad_alloc();
  return Buffer(p);
}

// Lets Linux back a large new array with large pages: one fault for 2 MB in place of 512, which take longer than writing
// its values. What the system makes of it changes no result.
inline void prefer_large_pages(void* p, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kLarge = 1 << 21;
  const std::uintptr_t at = reinterpret_cast<std::uintptr_t>(p), begin = (at + kLarge - 1) / kLarge * kLarge;
  const std::uintptr_t end = (at + static_cast<std::uintptr_t>(bytes)) / kLarge * kLarge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)p, (void)bytes;
#endif
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace m3el
