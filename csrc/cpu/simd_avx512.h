// AVX-512 vectors for the kernels' templates; included by ISA files only.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace {

// kFine: exp2 to 8e-8 (relative); otherwise to 8e-5, far below the error of bf16 products.
template <bool kFine>
struct Avx512 {
  using F = __m512;
  static constexpr int64_t W = 16;

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F sqrt(F a) { return _mm512_sqrt_ps(a); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F copy_sign(F size, F sign) { return _mm512_or_ps(abs(size), _mm512_and_ps(set1(-0.0f), sign)); }
  static F load_first(const float* p, int64_t n) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  }
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  static float largest(F a) { return _mm512_reduce_max_ps(a); }
  static F where_positive(F x, F y) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), y);
  }

  // 2^x = 2^floor(x) * p(x - floor(x)), p minimax on [0, 1); -inf and all below -150 give 0.
  static F exp2(F x) {
    const F f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    F p;
    if constexpr (kFine) {
      p = set1(1.8775766e-3f);
      p = fma(p, f, set1(8.9893406e-3f));
      p = fma(p, f, set1(5.5826318e-2f));
      p = fma(p, f, set1(2.4015361e-1f));
      p = fma(p, f, set1(6.9315308e-1f));
      p = fma(p, f, set1(9.9999994e-1f));
    } else {
      p = set1(7.8024514e-2f);
      p = fma(p, f, set1(2.2606717e-1f));
      p = fma(p, f, set1(6.9583356e-1f));
      p = fma(p, f, set1(9.9992520e-1f));
    }
    return _mm512_scalef_ps(p, x);
  }
  static F exp2_or_zero(F x) { return exp2(x); }

  // 16 words from byte `offset` on of each of 16 rows, to 16 columns.
  static void transpose(const char* const* rows, int64_t offset, uint32_t* out) {
    __m512i r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(rows[i] + offset);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
      t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      _mm512_storeu_si512(out + 16 * i, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
      _mm512_storeu_si512(out + 16 * (i + 4), _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
      _mm512_storeu_si512(out + 16 * (i + 8), _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
      _mm512_storeu_si512(out + 16 * (i + 12), _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
    }
  }
};

struct Avx512Float {
  using V = __m512;
  static constexpr int kPair = 1;
  static V load(const uint32_t* p) { return _mm512_loadu_ps(p); }
  static V broadcast(const uint32_t* p) { return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(*p))); }
  static __m512 dot(V a, V b, __m512 sum) { return _mm512_fmadd_ps(a, b, sum); }
};

}  // namespace
