// Four floats in plain C++ as a vector for the kernels' templates.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace {

struct Four {
  float v[4];
};

struct Plain {
  using F = Four;
  static constexpr int64_t W = 4;

  template <class Function>
  static F map(Function function) {
    F out;
    for (int i = 0; i < 4; ++i) out.v[i] = function(i);
    return out;
  }
  static F load(const float* p) {
    return map([=](int i) { return p[i]; });
  }
  static void store(float* p, F x) {
    for (int i = 0; i < 4; ++i) p[i] = x.v[i];
  }
  static F set1(float x) {
    return map([=](int) { return x; });
  }
  static F add(F a, F b) {
    return map([=](int i) { return a.v[i] + b.v[i]; });
  }
  static F sub(F a, F b) {
    return map([=](int i) { return a.v[i] - b.v[i]; });
  }
  static F mul(F a, F b) {
    return map([=](int i) { return a.v[i] * b.v[i]; });
  }
  static F fma(F a, F b, F c) {
    return map([=](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static F max(F a, F b) {
    return map([=](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F div(F a, F b) {
    return map([=](int i) { return a.v[i] / b.v[i]; });
  }
  static F sqrt(F a) {
    return map([=](int i) { return sqrtf(a.v[i]); });
  }
  static F abs(F a) {
    return map([=](int i) { return fabsf(a.v[i]); });
  }
  static F copy_sign(F size, F sign) {
    return map([=](int i) { return copysignf(size.v[i], sign.v[i]); });
  }
  static F load_first(const float* p, int64_t n) {
    return map([=](int i) { return i < n ? p[i] : 0.0f; });
  }
  static float sum(F a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }
  static float largest(F a) {
    const F pair = max(a, {{a.v[2], a.v[3], a.v[2], a.v[3]}});
    return pair.v[0] > pair.v[1] ? pair.v[0] : pair.v[1];
  }
  static F where_positive(F x, F y) {
    return map([=](int i) { return x.v[i] > 0 ? y.v[i] : 0.0f; });
  }
  static F exp2(F x) {
    return map([=](int i) { return exp2f(x.v[i]); });
  }
  static F exp2_or_zero(F x) { return exp2(x); }
  static void transpose(const char* const* rows, int64_t offset, uint32_t* out) {
    for (int64_t s = 0; s < W; ++s)
      for (int64_t lane = 0; lane < W; ++lane) memcpy(out + s * W + lane, rows[lane] + offset + 4 * s, 4);
  }
};

}  // namespace
