// The kernels of cross_modal.h over a vector type; included by one file per ISA level (see g2l_kernel.h). Beside what
// g2l_kernel.h asks of it, the vector type has mul, load_first, sum, largest, exp2 of values up to 126, exp2_or_zero
// (exp2, and 0 below -126) and where_positive (y where x > 0, else 0). In max(a, b) a NaN of b stays, as in exp2.
#pragma once

#include <stdint.h>

#include "cross_modal.h"
#include "cross_modal_attend_kernel.h"
#include "cross_modal_finish_kernel.h"
#include "kernel_parts.h"

namespace {

// R rows of x times N vectors of columns, of which `left` are left; only a single one may be a part of a vector.
template <class S, int R, int N>
inline void linear_block(const m3el::CrossModalLinear& layer, const float* x, int64_t column, float* out) {
  const int64_t left = layer.columns - column;
  const float* weight = layer.weight + column;
  typename S::F sum[R][N], own[N];
  const auto load = [&](const float* p, int v) { return N == 1 ? load_up_to<S>(p, left) : S::load(p + v * S::W); };
#pragma GCC unroll 6
  for (int v = 0; v < N; ++v) {
    own[v] = layer.bias ? load(layer.bias + column, v) : S::set1(0);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[r][v] = own[v];
  }
  for (int64_t k = 0; k < layer.inner; ++k) {
#pragma GCC unroll 6
    for (int v = 0; v < N; ++v) own[v] = load(weight + k * layer.columns, v);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const auto one = S::set1(x[r * layer.inner + k]);
#pragma GCC unroll 6
      for (int v = 0; v < N; ++v) sum[r][v] = S::fma(one, own[v], sum[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 6
    for (int v = 0; v < N; ++v) {
      float* to = out + r * layer.columns + column + v * S::W;
      N == 1 ? store_up_to<S>(to, sum[r][v], left) : S::store(to, sum[r][v]);
    }
}

template <class S, int R>
inline void linear_rows(const m3el::CrossModalLinear& layer, int64_t row, float* out) {
  constexpr int kVectors = S::W == 16 ? 6 : 3;  // with 4 rows' sums as many as there are registers
  const float* x = layer.x + row * layer.inner;
  out += row * layer.columns;
  int64_t c = 0;
  for (; c + kVectors * S::W <= layer.columns; c += kVectors * S::W) linear_block<S, R, kVectors>(layer, x, c, out);
  for (; c < layer.columns; c += S::W) linear_block<S, R, 1>(layer, x, c, out);
}

template <class S>
void linear(const m3el::CrossModalLinear& layer, int64_t begin, int64_t end, float* out) {
  int64_t i = begin;
  for (; i + 4 <= end; i += 4) linear_rows<S, 4>(layer, i, out);
  for (; i < end; ++i) linear_rows<S, 1>(layer, i, out);
}

template <class S>
constexpr m3el::CrossModalKernel make_cross_modal() {
  return {cross_modal_scratch_bytes, linear<S>, attend<S>, attend_backward<S>, finish<S>, finish_backward<S>};
}

}  // namespace
