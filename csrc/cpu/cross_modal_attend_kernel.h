// The attention of cross_modal.h over a vector type (see cross_modal_kernel.h).
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cross_modal.h"
#include "cross_modal_scratch.h"
#include "kernel_parts.h"

namespace {

using m3el::CrossModalRows;

constexpr int kPooled = 6;  // vectors of a register block

inline void padded(const float* from, int64_t width, float factor, int64_t stride, float* to) {
  for (int64_t c = 0; c < width; ++c) to[c] = factor * from[c];
  for (int64_t c = width; c < stride; ++c) to[c] = 0;
}

// The local rows of an item as floats whose vectors are full: where they are, or copied to scratch.
struct LocalRows {
  const float* data;
  int64_t stride;
};

template <class S>
inline bool in_place(const CrossModalRows& rows) {
  return rows.format == m3el::Format::f32 && rows.width % S::W == 0;
}

template <class S>
inline LocalRows local_rows(const CrossModalRows& rows, int64_t item, const CrossModalScratch& scratch) {
  const int64_t size = rows.tokens * rows.width;
  if (in_place<S>(rows)) return {static_cast<const float*>(rows.local) + item * size, rows.width};
  for (int64_t t = 0; t < rows.tokens; ++t) {
    float* to = scratch.rows + t * scratch.stride;
    const int64_t at = item * size + t * rows.width;
    if (rows.format == m3el::Format::f32)
      memcpy(to, static_cast<const float*>(rows.local) + at, 4 * rows.width);
    else
      for (int64_t c = 0; c < rows.width; ++c) to[c] = from_bf16(static_cast<const uint16_t*>(rows.local)[at + c]);
    for (int64_t c = rows.width; c < scratch.stride; ++c) to[c] = 0;
  }
  return {scratch.rows, scratch.stride};
}

// out[i] = row i . x for N rows
template <class S, int N>
inline void dots(const LocalRows& rows, int64_t first, const float* x, int64_t width, float* out) {
  typename S::F sum[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) sum[i] = S::set1(0);
  for (int64_t c = 0; c < width; c += S::W) {
    const auto right = S::load(x + c);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) sum[i] = S::fma(S::load(rows.data + (first + i) * rows.stride + c), right, sum[i]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) out[i] = S::sum(sum[i]);
}

template <class S>
inline void all_dots(const LocalRows& rows, int64_t tokens, const float* x, int64_t width, float* out) {
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4) dots<S, 4>(rows, t, x, width, out + t);
  for (; t < tokens; ++t) dots<S, 1>(rows, t, x, width, out + t);
}

// Base-2 logits become weights; zeros behind them up to a multiple of kPadding.
template <class S>
inline void softmax(float* logits, int64_t tokens) {
  const int64_t places = round_up(tokens, kPadding);
  for (int64_t t = tokens; t < places; ++t) logits[t] = -INFINITY;
  auto highest = S::load(logits), total = S::set1(0);
  for (int64_t t = S::W; t < places; t += S::W) highest = S::max(highest, S::load(logits + t));
  const auto peak = S::set1(S::largest(highest));
  for (int64_t t = 0; t < places; t += S::W) {
    const auto e = S::exp2_or_zero(S::sub(S::load(logits + t), peak));
    S::store(logits + t, e);
    total = S::add(total, e);
  }
  const auto share = S::set1(1 / S::sum(total));
  for (int64_t t = 0; t < places; t += S::W) S::store(logits + t, S::mul(S::load(logits + t), share));
}

// N vectors of the sum of the rows, each times its weight.
template <class S, int N>
inline void weighted_sum(const LocalRows& rows, int64_t tokens, const float* weights, float* out) {
  typename S::F sum[N];
#pragma GCC unroll 6
  for (int i = 0; i < N; ++i) sum[i] = S::set1(0);
  for (int64_t t = 0; t < tokens; ++t) {
    const auto weight = S::set1(weights[t]);
    const float* row = rows.data + t * rows.stride;
#pragma GCC unroll 6
    for (int i = 0; i < N; ++i) sum[i] = S::fma(weight, S::load(row + i * S::W), sum[i]);
  }
#pragma GCC unroll 6
  for (int i = 0; i < N; ++i) S::store(out + i * S::W, sum[i]);
}

template <class S>
void attend(const CrossModalRows& rows, int64_t begin, int64_t end, void* buffer, float* context) {
  const CrossModalScratch scratch(buffer, rows.tokens, rows.width);
  const int64_t width = rows.width;
  for (int64_t item = begin; item < end; ++item) {
    padded(rows.query + item * width, width, kLog2e, scratch.stride, scratch.query);
    const LocalRows local = local_rows<S>(rows, item, scratch);
    all_dots<S>(local, rows.tokens, scratch.query, width, scratch.logits);
    softmax<S>(scratch.logits, rows.tokens);
    int64_t c = 0;
    for (; c + kPooled * S::W <= width; c += kPooled * S::W)
      weighted_sum<S, kPooled>({local.data + c, local.stride}, rows.tokens, scratch.logits, scratch.context + c);
    for (; c < width; c += S::W)
      weighted_sum<S, 1>({local.data + c, local.stride}, rows.tokens, scratch.logits, scratch.context + c);
    memcpy(context + item * width, scratch.context, 4 * width);
  }
}

// N vectors of the gradients of the rows, weight * gradient + derivative * query, and of the query.
template <class S, int N>
inline void row_gradients(const LocalRows& rows, int64_t tokens, const CrossModalScratch& scratch, int64_t c, float* to,
                          int64_t stride) {
  typename S::F sum[N], query[N], gradient[N];
#pragma GCC unroll 3
  for (int i = 0; i < N; ++i) {
    sum[i] = S::set1(0);
    query[i] = S::load(scratch.query + c + i * S::W);
    gradient[i] = S::load(scratch.gradient + c + i * S::W);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const auto weight = S::set1(scratch.logits[t]), derivative = S::set1(scratch.derivatives[t]);
#pragma GCC unroll 3
    for (int i = 0; i < N; ++i) {
      const auto row = S::load(rows.data + t * rows.stride + c + i * S::W);
      sum[i] = S::fma(derivative, row, sum[i]);
      S::store(to + t * stride + c + i * S::W, S::fma(weight, gradient[i], S::mul(derivative, query[i])));
    }
  }
#pragma GCC unroll 3
  for (int i = 0; i < N; ++i) S::store(scratch.context + c + i * S::W, sum[i]);
}

template <class S>
void attend_backward(const CrossModalRows& rows, const float* gradient, int64_t begin, int64_t end, void* buffer,
                     float* of_query, void* of_local) {
  const CrossModalScratch scratch(buffer, rows.tokens, rows.width);
  const int64_t width = rows.width, tokens = rows.tokens, size = tokens * width;
  for (int64_t item = begin; item < end; ++item) {
    padded(rows.query + item * width, width, 1, scratch.stride, scratch.query);
    padded(gradient + item * width, width, 1, scratch.stride, scratch.gradient);
    const LocalRows local = local_rows<S>(rows, item, scratch);
    all_dots<S>(local, tokens, scratch.query, width, scratch.logits);
    for (int64_t t = 0; t < tokens; ++t) scratch.logits[t] *= kLog2e;
    softmax<S>(scratch.logits, tokens);
    all_dots<S>(local, tokens, scratch.gradient, width, scratch.derivatives);
    float mean = 0;
    for (int64_t t = 0; t < tokens; ++t) mean += scratch.logits[t] * scratch.derivatives[t];
    for (int64_t t = 0; t < tokens; ++t) scratch.derivatives[t] = scratch.logits[t] * (scratch.derivatives[t] - mean);
    const bool direct = in_place<S>(rows);
    float* to = direct ? static_cast<float*>(of_local) + item * size : scratch.of_rows;
    const int64_t stride = direct ? width : scratch.stride;
    int64_t c = 0;
    for (; c + 3 * S::W <= width; c += 3 * S::W) row_gradients<S, 3>(local, tokens, scratch, c, to, stride);
    for (; c < width; c += S::W) row_gradients<S, 1>(local, tokens, scratch, c, to, stride);
    memcpy(of_query + item * width, scratch.context, 4 * width);
    if (direct) continue;
    for (int64_t t = 0; t < tokens; ++t) {
      const float* row = scratch.of_rows + t * scratch.stride;
      const int64_t at = item * size + t * width;
      if (rows.format == m3el::Format::f32)
        memcpy(static_cast<float*>(of_local) + at, row, 4 * width);
      else
        for (int64_t i = 0; i < width; ++i) static_cast<uint16_t*>(of_local)[at + i] = to_bf16(row[i]);
    }
  }
}

}  // namespace
