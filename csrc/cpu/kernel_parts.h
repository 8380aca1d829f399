// What the kernels' templates share: sizes, bf16 values in plain C++, parts of vectors; included by one file per ISA
// level.
#pragma once

#include <stdint.h>
#include <string.h>

namespace {

constexpr float kLog2e = 1.44269504088896340736f;

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

inline float from_bf16(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Round to nearest, ties to even; infinities, and NaNs as arithmetic makes them, stay what they are.
inline uint16_t to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The first n places of a vector, or all of them: of an array that may end there; zeros behind them.
template <class S>
inline typename S::F load_up_to(const float* p, int64_t n) {
  return n >= S::W ? S::load(p) : S::load_first(p, n);
}

template <class S>
inline void store_up_to(float* p, typename S::F x, int64_t n) {
  if (n >= S::W) return S::store(p, x);
  float all[S::W];
  S::store(all, x);
  memcpy(p, all, 4 * n);
}

}  // namespace
