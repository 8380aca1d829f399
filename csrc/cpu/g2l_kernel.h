// The kernel of g2l.h over a vector type and a product engine; included by one file per ISA level, which may use C and
// intrinsics headers only (see native_build.py).
//
// A vector type `S` has: F, W lanes, load, store, set1, add, sub, mul, fma, max, div, sqrt, exp2 of values <= 0,
// transpose (W words from each of W rows).
// A product engine `P` has: kRows, kTokens (its register block), kPair (values of the width that share a 32-bit word:
// 1 = fp32, 2 = bf16) and products<T>(): the inner products of a mention's rows with T tokens of the group.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "g2l.h"
#include "kernel_parts.h"

namespace {

constexpr int64_t kAlign = 64;

// `width` values of a row as 32-bit words of an engine: floats (rounded through bf16 if asked), or bf16 pairs with a
// zero behind an odd width.
template <int kPair>
inline void to_words(const float* row, int64_t width, bool rounded, uint32_t* words) {
  if constexpr (kPair == 1) {
    float* out = reinterpret_cast<float*>(words);
    for (int64_t i = 0; i < width; ++i) out[i] = rounded ? from_bf16(to_bf16(row[i])) : row[i];
  } else {
    uint16_t* out = reinterpret_cast<uint16_t*>(words);
    for (int64_t i = 0; i < width; ++i) out[i] = to_bf16(row[i]);
    if (width % 2) out[width] = 0;
  }
}

inline void to_floats(const void* row, m3el::Format format, int64_t width, float* out) {
  if (format == m3el::Format::f32) {
    memcpy(out, row, 4 * width);
    return;
  }
  for (int64_t i = 0; i < width; ++i) {
    uint16_t x;
    memcpy(&x, static_cast<const char*>(row) + 2 * i, 2);
    out[i] = from_bf16(x);
  }
}

// Sizes and places inside a packed group: the header, then
//   words [rows + 1, steps, W]: the tokens, and weight * gate as one more token;
//   share [rows, W]: 1 / (number of tokens that take part), or 0 for one that does not; bias [W]: norm bias . gate.
template <class S, class P>
struct Group {
  int64_t rows, width;
  float eps;

  static int64_t steps(int64_t width) { return round_up(width, P::kWidthStep) / P::kPair; }
  static int64_t header() { return kAlign; }
  static int64_t bytes(int64_t rows, int64_t width) {
    return header() + 4 * S::W * ((rows + 1) * steps(width) + rows + 1);
  }
  uint32_t* token(int64_t t) const {
    return reinterpret_cast<uint32_t*>(const_cast<char*>(base()) + header()) + t * steps(width) * S::W;
  }
  float* share() const { return reinterpret_cast<float*>(token(rows + 1)); }
  float* bias() const { return share() + rows * S::W; }
  const char* base() const { return reinterpret_cast<const char*>(this); }
};

// A packed mention: the header, then
//   key [kept padded, steps] words: tokens that take part, times log2(e) / sqrt(width);
//   centred [kept padded, steps] words: V minus its feature mean;
//   gram [kept, kept] floats, V_c V_c^T / width; the part above the diagonal is zero and counted below it.
template <class S, class P>
struct Mention {
  int64_t kept, width;

  static int64_t padded(int64_t columns) { return round_up(columns, P::kRows); }
  static int64_t words(int64_t columns, int64_t width) { return padded(columns) * Group<S, P>::steps(width); }
  static int64_t bytes(int64_t columns, int64_t width) {
    return kAlign + round_up(8 * words(columns, width) + 4 * columns * columns, kAlign);
  }
  uint32_t* key() const { return reinterpret_cast<uint32_t*>(const_cast<char*>(base()) + kAlign); }
  uint32_t* centred() const { return key() + words(kept, width); }
  float* gram() const { return reinterpret_cast<float*>(centred() + words(kept, width)); }
  const char* base() const { return reinterpret_cast<const char*>(this); }
};

template <class S, class P>
int64_t group_bytes(int64_t rows, int64_t width) {
  return round_up(Group<S, P>::bytes(rows, width), kAlign);
}

template <class S, class P>
int64_t mention_bytes(int64_t columns, int64_t width) {
  return Mention<S, P>::bytes(columns, width);
}

// score: logits [kBuffers, padded, W], w [padded, W], products with the gate [padded, W];
// pack_group: one row as floats, W rows as words; pack_mention: one row, V_c [columns, width padded].
template <class S, class P>
int64_t scratch_bytes(int64_t, int64_t columns, int64_t width) {
  const int64_t score = 4 * S::W * Mention<S, P>::padded(columns) * (P::kTokens + 2);
  const int64_t steps = Group<S, P>::steps(width), floats = round_up(width, 16);
  const int64_t group = 4 * (floats + S::W * steps);
  const int64_t mention = 4 * floats * (1 + columns);
  const int64_t most = score > group ? score : group;
  return round_up(most > mention ? most : mention, kAlign);
}

// W rows of `steps` words, at any address, to steps x W.
template <class S>
void interleave(const char* const* rows, int64_t steps, uint32_t* out) {
  int64_t s = 0;
  for (; s + S::W <= steps; s += S::W) S::transpose(rows, 4 * s, out + s * S::W);
  for (; s < steps; ++s)
    for (int64_t lane = 0; lane < S::W; ++lane) memcpy(out + s * S::W + lane, rows[lane] + 4 * s, 4);
}

template <class S, class P>
void pack_group(const m3el::G2LEntities& e, const int64_t* rows, bool rounded, void* scratch, void* packed) {
  auto* group = static_cast<Group<S, P>*>(packed);
  *group = {e.rows, e.width, e.eps};
  const int64_t steps = Group<S, P>::steps(e.width);
  float* row = static_cast<float*>(scratch);
  uint32_t* words = reinterpret_cast<uint32_t*>(row + round_up(e.width, 16));
  memset(words, 0, 4 * S::W * steps);
  const char* lanes[S::W];
  for (int64_t lane = 0; lane < S::W; ++lane) lanes[lane] = reinterpret_cast<const char*>(words + lane * steps);

  const int64_t element = e.query_format == m3el::Format::f32 ? 4 : 2;
  const bool same_format = P::kPair == 2 ? e.query_format == m3el::Format::bf16
                                         : e.query_format == m3el::Format::f32 && !rounded;
  const bool as_is = same_format && e.width % P::kWidthStep == 0;
  for (int64_t t = 0; t < e.rows; ++t) {
    const char* from[S::W];
    for (int64_t lane = 0; lane < S::W; ++lane) {
      from[lane] = static_cast<const char*>(e.query) + (rows[lane] * e.rows + t) * e.width * element;
      if (as_is) continue;
      to_floats(from[lane], e.query_format, e.width, row);
      to_words<P::kPair>(row, e.width, rounded, words + lane * steps);
    }
    interleave<S>(as_is ? from : lanes, steps, group->token(t));
  }

  const int64_t gate_element = e.gate_format == m3el::Format::f32 ? 4 : 2;
  for (int64_t lane = 0; lane < S::W; ++lane) {
    to_floats(static_cast<const char*>(e.gate) + rows[lane] * e.width * gate_element, e.gate_format, e.width, row);
    float bias = 0;
    for (int64_t i = 0; i < e.width; ++i) {
      bias += e.norm_bias[i] * row[i];
      row[i] *= e.norm_weight[i];
    }
    group->bias()[lane] = bias;
    to_words<P::kPair>(row, e.width, rounded, words + lane * steps);
    int64_t count = 0;
    const uint8_t* mask = e.mask ? e.mask + rows[lane] * e.rows : nullptr;
    for (int64_t t = 0; t < e.rows; ++t) count += !mask || mask[t];
    for (int64_t t = 0; t < e.rows; ++t)
      group->share()[t * S::W + lane] = !mask || mask[t] ? 1.0f / static_cast<float>(count) : 0.0f;
  }
  interleave<S>(lanes, steps, group->token(e.rows));
}

// Inner product of rows whose length is a multiple of 16; the partial sums keep the compiler's vectors busy.
inline float dot(const float* a, const float* b, int64_t n) {
  float part[16] = {};
  for (int64_t i = 0; i < n; i += 16)
    for (int l = 0; l < 16; ++l) part[l] += a[i + l] * b[i + l];
  float sum = 0;
  for (int l = 0; l < 16; ++l) sum += part[l];
  return sum;
}

template <class S, class P>
void pack_mention(const m3el::G2LMention& m, int64_t width, bool rounded, void* scratch, void* packed) {
  int64_t kept = 0;
  for (int64_t k = 0; k < m.columns; ++k) kept += !m.mask || m.mask[k];
  auto* mention = static_cast<Mention<S, P>*>(packed);
  *mention = {kept, width};
  const int64_t steps = Group<S, P>::steps(width), words = Mention<S, P>::words(kept, width);
  memset(mention->key(), 0, 8 * words);
  float* row = static_cast<float*>(scratch);
  const int64_t stride = round_up(width, 16);
  float* centred = row + stride;
  const float fold = kLog2e / sqrtf(static_cast<float>(width));
  int64_t place = 0;
  for (int64_t k = 0; k < m.columns; ++k) {
    if (m.mask && !m.mask[k]) continue;
    for (int64_t i = 0; i < width; ++i) row[i] = m.key[k * width + i] * fold;
    to_words<P::kPair>(row, width, rounded, mention->key() + place * steps);
    double mean = 0;
    for (int64_t i = 0; i < width; ++i) mean += m.value[k * width + i];
    mean /= static_cast<double>(width);
    float* c = centred + place * stride;
    for (int64_t i = width; i < stride; ++i) c[i] = 0;
    for (int64_t i = 0; i < width; ++i) c[i] = m.value[k * width + i] - static_cast<float>(mean);
    to_words<P::kPair>(c, width, rounded, mention->centred() + place * steps);
    for (int64_t j = 0; j <= place; ++j) {
      const float sum = dot(c, centred + j * stride, stride);
      mention->gram()[place * kept + j] = (j < place ? 2 * sum : sum) / static_cast<float>(width);
      if (j < place) mention->gram()[j * kept + place] = 0;
    }
    ++place;
  }
}

// x[k] <- exp2(x[k] - max over k) in place; returns the sum. `rows` >= 1.
template <class S>
inline typename S::F softmax(float* x, int64_t rows) {
  using F = typename S::F;
  F top = S::load(x);
  for (int64_t k = 1; k < rows; ++k) top = S::max(top, S::load(x + k * S::W));
  F sum0 = S::set1(0), sum1 = S::set1(0);
  int64_t k = 0;
  for (; k + 2 <= rows; k += 2) {
    const F a = S::exp2(S::sub(S::load(x + k * S::W), top)), b = S::exp2(S::sub(S::load(x + (k + 1) * S::W), top));
    S::store(x + k * S::W, a);
    S::store(x + (k + 1) * S::W, b);
    sum0 = S::add(sum0, a);
    sum1 = S::add(sum1, b);
  }
  if (k < rows) {
    const F a = S::exp2(S::sub(S::load(x + k * S::W), top));
    S::store(x + k * S::W, a);
    sum0 = S::add(sum0, a);
  }
  return S::add(sum0, sum1);
}

// w += share * softmax of T tokens' logits [T, padded, W].
template <class S, int T>
inline void add_weights(float* logits, int64_t kept, int64_t padded, const float* share, float* w) {
  typename S::F scale[T];
  for (int i = 0; i < T; ++i)
    scale[i] = S::div(S::load(share + i * S::W), softmax<S>(logits + i * padded * S::W, kept));
  for (int64_t k = 0; k < kept; ++k) {
    typename S::F sum = S::load(w + k * S::W);
#pragma GCC unroll 8
    for (int i = 0; i < T; ++i) sum = S::fma(S::load(logits + (i * padded + k) * S::W), scale[i], sum);
    S::store(w + k * S::W, sum);
  }
}

// (w . V_c gw) / sqrt(w^T G w + eps) + bias, from w and the products of V_c with the gate.
template <class S, class P>
inline void finish(const Group<S, P>& group, const Mention<S, P>& mention, const float* w, const float* gated, float* out) {
  using F = typename S::F;
  const int64_t kept = mention.kept;
  F dot = S::set1(0), square = S::set1(0);
  for (int64_t k = 0; k < kept; ++k) {
    const F own = S::load(w + k * S::W);
    dot = S::fma(own, S::load(gated + k * S::W), dot);
    const float* gram = mention.gram() + k * kept;
    F sum0 = S::set1(0), sum1 = S::set1(0);
    int64_t j = 0;
    for (; j + 2 <= k + 1; j += 2) {
      sum0 = S::fma(S::set1(gram[j]), S::load(w + j * S::W), sum0);
      sum1 = S::fma(S::set1(gram[j + 1]), S::load(w + (j + 1) * S::W), sum1);
    }
    if (j <= k) sum0 = S::fma(S::set1(gram[j]), S::load(w + j * S::W), sum0);
    square = S::fma(own, S::add(sum0, sum1), square);
  }
  const F variance = S::add(S::max(square, S::set1(0)), S::set1(group.eps));
  S::store(out, S::add(S::div(dot, S::sqrt(variance)), S::load(group.bias())));
}

template <class S, class P, int T>
inline void tokens(const Group<S, P>& group, const Mention<S, P>& mention, int64_t t, float* logits, float* w) {
  const int64_t padded = Mention<S, P>::padded(mention.kept), steps = Group<S, P>::steps(group.width);
  P::template products<T>(mention.key(), padded, steps, group.token(t), logits);
  add_weights<S, T>(logits, mention.kept, padded, group.share() + t * S::W, w);
}

template <class S, class P, int T>
inline void last_tokens(const Group<S, P>& group, const Mention<S, P>& mention, int64_t t, float* logits, float* w) {
  if constexpr (T > 0) {
    if (group.rows - t == T)
      tokens<S, P, T>(group, mention, t, logits, w);
    else
      last_tokens<S, P, T - 1>(group, mention, t, logits, w);
  }
}

template <class S, class P>
void score(const void* packed_group, const void* packed_mention, void* scratch, float* out) {
  const auto& group = *static_cast<const Group<S, P>*>(packed_group);
  const auto& mention = *static_cast<const Mention<S, P>*>(packed_mention);
  const int64_t padded = Mention<S, P>::padded(mention.kept);
  float* w = static_cast<float*>(scratch);
  float* gated = w + padded * S::W;
  float* logits = gated + padded * S::W;
  memset(w, 0, 4 * padded * S::W);
  int64_t t = 0;
  for (; t + P::kTokens <= group.rows; t += P::kTokens) tokens<S, P, P::kTokens>(group, mention, t, logits, w);
  last_tokens<S, P, P::kTokens - 1>(group, mention, t, logits, w);
  P::template products<1>(mention.centred(), padded, Group<S, P>::steps(group.width), group.token(group.rows), gated);
  finish<S, P>(group, mention, w, gated, out);
}

// Products of kRows x T register blocks: one word of a mention row, broadcast, times one vector of words a token.
template <class S, class Word, int kRowBlock, int kTokenBlock>
struct BroadcastEngine {
  static constexpr int kRows = kRowBlock, kTokens = kTokenBlock, kPair = Word::kPair, kWidthStep = Word::kPair;

  // a [padded, steps] words, b [T, steps, W] words -> out [T, padded, W]
  template <int T>
  static void products(const uint32_t* a, int64_t padded, int64_t steps, const uint32_t* b, float* out) {
    for (int64_t r = 0; r < padded; r += kRows) {
      typename S::F sum[T][kRows];
#pragma GCC unroll 8
      for (int i = 0; i < T; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < kRows; ++j) sum[i][j] = S::set1(0);
      const uint32_t* row = a + r * steps;
      for (int64_t s = 0; s < steps; ++s) {
        typename Word::V token[T];
#pragma GCC unroll 8
        for (int i = 0; i < T; ++i) token[i] = Word::load(b + (i * steps + s) * S::W);
#pragma GCC unroll 8
        for (int j = 0; j < kRows; ++j) {
          const typename Word::V own = Word::broadcast(row + j * steps + s);
#pragma GCC unroll 8
          for (int i = 0; i < T; ++i) sum[i][j] = Word::dot(own, token[i], sum[i][j]);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < T; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < kRows; ++j) S::store(out + (i * padded + r + j) * S::W, sum[i][j]);
    }
  }
};

using Score = void (*)(const void* group, const void* mention, void* scratch, float* out);

template <class S, class P>
constexpr m3el::G2LKernel make_kernel(Score score, void (*enter)() = [] {}, void (*leave)() = [] {}) {
  return {S::W,           P::kPair == 2,       group_bytes<S, P>, mention_bytes<S, P>, scratch_bytes<S, P>,
          pack_group<S, P>, pack_mention<S, P>, score,             enter,               leave};
}

}  // namespace
