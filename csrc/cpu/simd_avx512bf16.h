// Words of two bf16 values for the kernels' templates; included by ISA files only.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Avx512Pairs {
  using V = __m512bh;
  static constexpr int kPair = 2;
  static V load(const uint32_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static V broadcast(const uint32_t* p) { return (__m512bh)_mm512_set1_epi32(static_cast<int>(*p)); }
  static __m512 dot(V a, V b, __m512 sum) { return _mm512_dpbf16_ps(sum, a, b); }
};

}  // namespace
