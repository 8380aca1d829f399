// The kernels of products.h over a vector type; included by one file per ISA level (see g2l_kernel.h). Beside what
// g2l_kernel.h asks of it, the vector type has mul, abs, copy_sign, load_first (n < W values, zeros behind) and sum.
#pragma once

#include <stdint.h>

#include "products.h"

namespace {

constexpr int64_t kTile = 4;        // rows of either side in a register block
constexpr int64_t kDualBlock = 64;  // targets, or pairs, whose scalars are combined together
constexpr int kProducts = 5, kScalars = 7;

// out[i][j] = a[i] . b[j]
template <class S, int A, int B>
inline void tile(const float* const* a, const float* const* b, int64_t width, float (&out)[A][B]) {
  typename S::F sum[A][B];
#pragma GCC unroll 4
  for (int i = 0; i < A; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < B; ++j) sum[i][j] = S::set1(0);
  int64_t c = 0;
  for (; c + S::W <= width; c += S::W) {
    typename S::F right[B];
#pragma GCC unroll 4
    for (int j = 0; j < B; ++j) right[j] = S::load(b[j] + c);
#pragma GCC unroll 4
    for (int i = 0; i < A; ++i) {
      const typename S::F left = S::load(a[i] + c);
#pragma GCC unroll 4
      for (int j = 0; j < B; ++j) sum[i][j] = S::fma(left, right[j], sum[i][j]);
    }
  }
  if (c < width)
    for (int i = 0; i < A; ++i)
      for (int j = 0; j < B; ++j)
        sum[i][j] = S::fma(S::load_first(a[i] + c, width - c), S::load_first(b[j] + c, width - c), sum[i][j]);
#pragma GCC unroll 4
  for (int i = 0; i < A; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < B; ++j) out[i][j] = S::sum(sum[i][j]);
}

inline const float* row(const m3el::Rows& rows, int64_t i) { return rows.data + i * rows.stride; }

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class S>
void inner(m3el::Rows a, int64_t m, m3el::Rows b, int64_t n, int64_t width, float* out, int64_t out_stride) {
  for (int64_t j = 0; j < n; j += kTile)
    for (int64_t i = 0; i < m; i += kTile) {
      const float *left[kTile], *right[kTile];
      for (int64_t t = 0; t < kTile; ++t) {  // rows past the end repeat the last one
        left[t] = row(a, smaller(i + t, m - 1));
        right[t] = row(b, smaller(j + t, n - 1));
      }
      float found[kTile][kTile];
      tile<S>(left, right, width, found);
      for (int64_t t = 0; t < smaller(kTile, m - i); ++t)
        for (int64_t u = 0; u < smaller(kTile, n - j); ++u) out[(i + t) * out_stride + j + u] = found[t][u];
    }
}

template <class S>
inline float one_product(const float* a, const float* b, int64_t width) {
  float found[1][1];
  tile<S>(&a, &b, width, found);
  return found[0][0];
}

template <class S>
void inner_pairs(m3el::Rows a, const int64_t* a_row, m3el::Rows b, const int64_t* b_row, int64_t n, int64_t width,
                 float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = one_product<S>(row(a, a_row[i]), row(b, b_row[i]), width);
}

// tanh(x) = sign(x) (1 - e) / (1 + e), e = exp(-2 |x|); absolute error 1e-7
template <class S>
inline typename S::F tanh_of(typename S::F x) {
  const auto one = S::set1(1);
  const auto e = S::exp2(S::mul(S::abs(x), S::set1(-2.88539008f)));
  return S::copy_sign(S::div(S::sub(one, e), S::add(one, e)), x);
}

template <class S>
struct DualScalars {
  // source: a.a, gate, n.pa, n.q, pa.pa, pa.q, n.bias; target: v.v, gate, pv.pv, pv.q, k.k, pv.k, k.q;
  // product: a.v, n.pv, n.k, pa.pv, pa.k. As _dual_combine in m3el_fast/ops/reference.py.
  alignas(64) float source[kScalars][kDualBlock], target[kScalars][kDualBlock], product[kProducts][kDualBlock];

  void set_target(int64_t place, const float* scalars) {
    for (int c = 0; c < kScalars; ++c) target[c][place] = scalars[c];
  }
  void set_source(int64_t place, const float* scalars) {
    for (int c = 0; c < kScalars; ++c) source[c][place] = scalars[c];
  }

  void combine(int64_t d, const m3el::DualConstants& constants, float (&out)[kDualBlock]) const {
    using F = typename S::F;
    const F one = S::set1(1), two = S::set1(2), zero = S::set1(0), mean = S::set1(1.0f / static_cast<float>(d));
    for (int64_t i = 0; i < kDualBlock; i += S::W) {
      const auto s_ = [&](int c) { return S::load(source[c] + i); };
      const auto t_ = [&](int c) { return S::load(target[c] + i); };
      const auto p_ = [&](int c) { return S::load(product[c] + i); };
      const F square1 = S::max(S::fma(two, p_(0), S::add(s_(0), t_(0))), zero);
      const F rstd1 = S::div(one, S::sqrt(S::fma(square1, mean, S::set1(constants.eps1))));
      const F g = tanh_of<S>(S::fma(S::add(s_(1), t_(1)), rstd1, S::set1(constants.gate)));
      const F s = S::mul(g, rstd1);
      const F dot = S::fma(s, S::add(p_(1), s_(2)), S::fma(g, s_(3), p_(2)));
      const F xx = S::fma(two, p_(3), S::add(s_(4), t_(2)));
      const F xq = S::add(s_(5), t_(3)), xk = S::add(p_(4), t_(5));
      // |s x + g q + k|^2
      F square = S::fma(S::mul(s, s), xx, S::fma(S::mul(g, g), S::set1(constants.bias), t_(4)));
      const F mixed = S::fma(S::mul(s, g), xq, S::fma(s, xk, S::mul(g, t_(6))));
      square = S::max(S::fma(two, mixed, square), zero);
      const F rstd2 = S::div(one, S::sqrt(S::fma(square, mean, S::set1(constants.eps2))));
      S::store(out + i, S::fma(dot, rstd2, s_(6)));
    }
  }
};

// Offsets of the vectors that the five products take from packed rows of 3 d + 7 values.
constexpr int kSourceVector[kProducts] = {0, 1, 1, 2, 2};
constexpr int kTargetVector[kProducts] = {0, 1, 2, 1, 2};

template <class S>
void dual(m3el::Rows source, int64_t m, m3el::Rows target, int64_t n, int64_t d, m3el::DualConstants constants,
          float* out, int64_t out_stride) {
  DualScalars<S> scalars[kTile] = {};
  float result[kDualBlock];
  for (int64_t j0 = 0; j0 < n; j0 += kDualBlock) {
    const int64_t columns = smaller(kDualBlock, n - j0);
    for (auto& one : scalars)
      for (int64_t j = 0; j < columns; ++j) one.set_target(j, row(target, j0 + j) + 3 * d);
    for (int64_t i = 0; i < m; i += kTile) {
      const float *left[kTile], *right[kTile];
      for (int p = 0; p < kProducts; ++p)
        for (int64_t j = 0; j < columns; j += kTile) {
          for (int64_t t = 0; t < kTile; ++t) {
            left[t] = row(source, smaller(i + t, m - 1)) + kSourceVector[p] * d;
            right[t] = row(target, j0 + smaller(j + t, columns - 1)) + kTargetVector[p] * d;
          }
          float found[kTile][kTile];
          tile<S>(left, right, d, found);
          for (int64_t t = 0; t < kTile; ++t)
            for (int64_t u = 0; u < kTile; ++u) scalars[t].product[p][j + u] = found[t][u];
        }
      for (int64_t t = 0; t < smaller(kTile, m - i); ++t) {
        for (int64_t j = 0; j < columns; ++j) scalars[t].set_source(j, row(source, i + t) + 3 * d);
        scalars[t].combine(d, constants, result);
        for (int64_t j = 0; j < columns; ++j) out[(i + t) * out_stride + j0 + j] = result[j];
      }
    }
  }
}

template <class S>
void dual_pairs(m3el::Rows source, const int64_t* source_row, m3el::Rows target, const int64_t* target_row, int64_t n,
                int64_t d, m3el::DualConstants constants, float* out) {
  DualScalars<S> scalars = {};
  float result[kDualBlock];
  for (int64_t first = 0; first < n; first += kDualBlock) {
    const int64_t count = smaller(kDualBlock, n - first);
    for (int64_t i = 0; i < count; ++i) {
      const float *a = row(source, source_row[first + i]), *b = row(target, target_row[first + i]);
      for (int p = 0; p < kProducts; ++p)
        scalars.product[p][i] = one_product<S>(a + kSourceVector[p] * d, b + kTargetVector[p] * d, d);
      scalars.set_source(i, a + 3 * d);
      scalars.set_target(i, b + 3 * d);
    }
    scalars.combine(d, constants, result);
    for (int64_t i = 0; i < count; ++i) out[first + i] = result[i];
  }
}

template <class S>
constexpr m3el::ProductsKernel make_products() {
  return {inner<S>, inner_pairs<S>, dual<S>, dual_pairs<S>};
}

}  // namespace
