// All that is behind U in cross_modal.h, pooled heads, gate and LayerNorm, over a vector type (see
// cross_modal_kernel.h).
#pragma once

#include <math.h>
#include <stdint.h>

#include "cross_modal.h"
#include "cross_modal_scratch.h"
#include "kernel_parts.h"

namespace {

using m3el::CrossModalPool;
using m3el::CrossModalTail;

template <class S>
inline typename S::F sigmoid(typename S::F x) {
  const auto e = S::exp2(S::mul(S::set1(-kLog2e), S::max(S::set1(-87.0f), x)));
  return S::div(S::set1(1), S::add(S::set1(1), e));
}

template <class S>
struct Pooled {
  using F = typename S::F;
  F value, by_enriched, by_row, by_mix;
};

// H of one vector of channels, and where kGradient its derivatives by a, r (behind their ReLU) and mix.
template <class S, bool kGradient>
inline Pooled<S> pooled(const CrossModalPool& pool, typename S::F a, typename S::F r) {
  using F = typename S::F;
  const F difference = S::sub(a, r), one = S::set1(1), half = S::set1(0.5f);
  Pooled<S> out{};
  out.value = S::fma(S::set1(pool.enriched), a, S::mul(S::set1(pool.row), r));
  out.value = S::fma(S::set1(pool.largest), S::max(a, r), out.value);
  F slope = S::set1(0);
  for (int64_t h = 0; h < pool.heads; ++h) {
    const F weight = S::set1(pool.weight[h]), temperature = S::set1(pool.temperature[h]);
    const F share = sigmoid<S>(S::sub(S::mul(temperature, difference), S::set1(pool.log_count)));
    out.value = S::fma(S::mul(weight, difference), share, out.value);
    if constexpr (kGradient) {
      const F rest = S::mul(S::mul(temperature, difference), S::sub(one, share));
      slope = S::fma(S::mul(weight, share), S::add(one, rest), slope);
    }
  }
  if constexpr (kGradient) {
    // of max(a, r): half each where they are equal
    const F more = S::sub(S::where_positive(difference, half), S::where_positive(S::sub(r, a), half));
    const F largest = S::set1(pool.largest);
    out.by_enriched = S::add(S::fma(largest, S::add(half, more), S::set1(pool.enriched)), slope);
    out.by_row = S::sub(S::fma(largest, S::sub(half, more), S::set1(pool.row)), slope);
  }
  return out;
}

template <class S>
inline Pooled<S> fused(const CrossModalPool& pool, typename S::F a, typename S::F r, typename S::F mix) {
  using F = typename S::F;
  const F f = sigmoid<S>(mix), rest = S::sub(S::set1(1), f), row = S::mul(S::set1(pool.row), r);
  Pooled<S> out{};
  out.value = S::fma(f, a, S::mul(rest, row));
  out.by_enriched = f;
  out.by_row = S::mul(S::set1(pool.row), rest);
  out.by_mix = S::mul(S::mul(f, rest), S::sub(a, row));
  return out;
}

// What forward and backward share of an item: its gate, and in `centred` what the LayerNorm multiplies with rstd.
template <class S>
struct TailItem {
  using F = typename S::F;
  const CrossModalTail& tail;
  const int64_t at;
  float gate, rstd;

  F load(const float* p, int64_t c) const { return load_up_to<S>(p + c, tail.width - c); }
  F ahead(const float* p, int64_t c) const { return S::max(S::set1(0), load(p + at, c)); }

  template <bool kGradient>
  Pooled<S> at_channel(int64_t c) const {
    const F a = ahead(tail.enriched, c), r = ahead(tail.row, c);
    return tail.mix ? fused<S>(tail.pool, a, r, load(tail.mix + at, c)) : pooled<S, kGradient>(tail.pool, a, r);
  }

  TailItem(const CrossModalTail& t, int64_t item, float* centred) : tail(t), at(item * t.width) {
    const int64_t width = tail.width;
    const F share = S::set1(1.0f / static_cast<float>(width));
    F dot = S::set1(0), total = dot, square = dot;
    for (int64_t c = 0; c < width; c += S::W) dot = S::fma(load(tail.glob + at, c), load(tail.gate_weight, c), dot);
    gate = tanhf(S::sum(dot) + tail.gate_bias[0]);
    for (int64_t c = 0; c < width; c += S::W) {
      const F x = S::fma(load(tail.glob + at, c), S::set1(gate), at_channel<false>(c).value);
      S::store(centred + c, x);
      total = S::add(total, load_up_to<S>(centred + c, width - c));
    }
    const F mean = S::set1(S::sum(S::mul(total, share)));
    for (int64_t c = 0; c < width; c += S::W) {
      S::store(centred + c, S::sub(S::load(centred + c), mean));
      const F x = load_up_to<S>(centred + c, width - c);
      square = S::fma(x, x, square);
    }
    rstd = 1 / sqrtf(S::sum(S::mul(square, share)) + tail.eps);
  }
};

template <class S>
void finish(const CrossModalTail& tail, int64_t begin, int64_t end, void* buffer, float* out) {
  const CrossModalScratch scratch(buffer, 0, tail.width);
  for (int64_t i = begin; i < end; ++i) {
    const TailItem<S> item(tail, i, scratch.context);
    for (int64_t c = 0; c < tail.width; c += S::W) {
      const auto x = S::mul(S::load(scratch.context + c), S::set1(item.rstd));
      const auto y = S::fma(x, item.load(tail.norm_weight, c), item.load(tail.norm_bias, c));
      store_up_to<S>(out + item.at + c, y, tail.width - c);
    }
  }
}

template <class S>
void finish_backward(const CrossModalTail& tail, const float* gradient, int64_t begin, int64_t end, void* buffer,
                     const m3el::CrossModalGradients& out, float* weights) {
  using F = typename S::F;
  const CrossModalScratch scratch(buffer, 0, tail.width);
  const int64_t width = tail.width;
  float *of_gate = weights, *of_norm = weights + width, *of_bias = weights + 2 * width;
  const auto add = [&](float* p, int64_t c, F x) {
    store_up_to<S>(p + c, S::add(load_up_to<S>(p + c, width - c), x), width - c);
  };
  for (int64_t i = begin; i < end; ++i) {
    const TailItem<S> item(tail, i, scratch.context);
    const float* own = gradient + item.at;
    const F rstd = S::set1(item.rstd), share = S::set1(1.0f / static_cast<float>(width));
    F sum = S::set1(0), product = sum;
    for (int64_t c = 0; c < width; c += S::W) {
      const F x = S::mul(load_up_to<S>(scratch.context + c, width - c), rstd), g = item.load(own, c);
      const F y = S::mul(g, item.load(tail.norm_weight, c));
      S::store(scratch.context + c, x);
      S::store(scratch.gradient + c, y);
      sum = S::add(sum, y);
      product = S::fma(x, y, product);
      add(of_norm, c, S::mul(g, x));
      add(of_bias, c, g);
    }
    const F mean = S::set1(S::sum(S::mul(sum, share))), along = S::set1(S::sum(S::mul(product, share)));
    F by_gate = S::set1(0);
    for (int64_t c = 0; c < width; c += S::W) {
      const F y = S::sub(S::load(scratch.gradient + c), S::fma(S::load(scratch.context + c), along, mean));
      S::store(scratch.gradient + c, S::mul(y, rstd));  // of the LayerNorm's argument
      by_gate = S::fma(S::mul(y, rstd), item.load(tail.glob + item.at, c), by_gate);
    }
    const float of_tanh = S::sum(by_gate) * (1 - item.gate * item.gate);
    weights[3 * width] += of_tanh;
    for (int64_t c = 0; c < width; c += S::W) {
      const auto store = [&](float* p, F x) { store_up_to<S>(p + item.at + c, x, width - c); };
      const F y = S::load(scratch.gradient + c);
      const Pooled<S> h = item.template at_channel<true>(c);
      add(of_gate, c, S::mul(S::set1(of_tanh), item.load(tail.glob + item.at, c)));
      store(out.glob, S::fma(y, S::set1(item.gate), S::mul(S::set1(of_tanh), item.load(tail.gate_weight, c))));
      store(out.enriched, S::where_positive(item.ahead(tail.enriched, c), S::mul(y, h.by_enriched)));
      store(out.row, S::where_positive(item.ahead(tail.row, c), S::mul(y, h.by_row)));
      if (tail.mix) store(out.mix, S::mul(y, h.by_mix));
    }
  }
}

}  // namespace
