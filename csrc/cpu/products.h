// Scores that come from inner products of per-side vectors: plain ones, and MIMIC's DUAL (spec section 5.5).
//
// Each product is summed in the same order wherever its rows stand, so equal rows have bitwise equal scores.
#pragma once

#include <stdint.h>

namespace m3el {

struct Rows {
  const float* data;
  int64_t stride;  // floats from one row to the next
};

// What the pairs of one DUAL unit share; see DualConstants in m3el_fast/ops/reference.py.
struct DualConstants {
  float gate, bias, eps1, eps2;
};

struct ProductsKernel {
  // out[i, j] = a_i . b_j for i < m, j < n; rows of `width` values.
  void (*inner)(Rows a, int64_t m, Rows b, int64_t n, int64_t width, float* out, int64_t out_stride);
  // out[i] = a_{a_row[i]} . b_{b_row[i]}
  void (*inner_pairs)(Rows a, const int64_t* a_row, Rows b, const int64_t* b_row, int64_t n, int64_t width, float* out);
  // The same for packed rows of 3 d + 7 values.
  void (*dual)(Rows source, int64_t m, Rows target, int64_t n, int64_t d, DualConstants constants, float* out,
               int64_t out_stride);
  void (*dual_pairs)(Rows source, const int64_t* source_row, Rows target, const int64_t* target_row, int64_t n,
                     int64_t d, DualConstants constants, float* out);
};

extern const ProductsKernel kProductsScalar;
#if defined(__x86_64__)
extern const ProductsKernel kProductsAvx2, kProductsAvx512;
#endif

}  // namespace m3el
