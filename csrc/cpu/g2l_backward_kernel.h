// The kernel of g2l_backward.h over a vector type and the forward's product engine; included by one file per ISA level.
//
// For one mention and one group: the attention weights again, as the forward has them (lane = entity), all of them kept
// in L2; the pooled context and the LayerNorm, whose gradient gives that of the value; then, block of tokens by block,
// the gradient X of the logits and its two products X Q and X^T K. For these a lane is a column of the width, so that
// both gradients are plain rows, the sums over entities and tokens run inside a product, and nothing is reduced or
// transposed at the end.
//
// A gradient engine `G` has: kPair as the engine `P`; V, load, broadcast, dot of words; kTokens (tokens of a block),
// kLanes x kVectors (register block of X^T K), and write(), which turns two rows of X into words.
#pragma once

#include "g2l_backward.h"
#include "g2l_kernel.h"

namespace {

constexpr float kLn2 = 0.69314718055994530942f;

// Words of one float: products in fp32.
template <class S>
struct Single {
  using V = typename S::F;
  static constexpr int kPair = 1;
  static V load(const uint32_t* p) { return S::load(reinterpret_cast<const float*>(p)); }
  static V broadcast(const uint32_t* p) { return S::set1(*reinterpret_cast<const float*>(p)); }
  static V dot(V a, V b, V sum) { return S::fma(a, b, sum); }
};

// Where the words of a block's X [columns, n] are: pairs of neighbours in a row for X Q, in a column for X^T K.
struct Words {
  uint32_t* by_row;     // [columns, n / kPair]
  uint32_t* by_column;  // [columns / kPair, n]
  int64_t n;
};

template <class S, int kTokenBlock, int kLaneBlock>
struct SingleGradient : Single<S> {
  static constexpr int kTokens = kTokenBlock, kLanes = kLaneBlock, kVectors = 3;
  static void write(typename S::F x, typename S::F next, int64_t k, int64_t place, const Words& to) {
    S::store(reinterpret_cast<float*>(to.by_row) + k * to.n + place, x);
    S::store(reinterpret_cast<float*>(to.by_row) + (k + 1) * to.n + place, next);
  }
};

// Behind the forward's packed group, of which rows, share and tokens are used:
//   by_token [rows, W / kPair, stride] words: the tokens as rows, pairs of entities; gate [W, stride]: weight * gate.
template <class S, class P>
struct GradientGroup : Group<S, P> {
  using Base = Group<S, P>;
  int64_t stride() const { return round_up(Base::width, S::W); }
  uint32_t* by_token(int64_t t) const {
    char* end = const_cast<char*>(Base::base()) + round_up(Base::bytes(Base::rows, Base::width), kAlign);
    return reinterpret_cast<uint32_t*>(end) + t * (S::W / P::kPair) * stride();
  }
  float* gate() const { return reinterpret_cast<float*>(by_token(Base::rows)); }
  static int64_t bytes(int64_t rows, int64_t width) {
    const int64_t words = (rows * (S::W / P::kPair) + S::W) * round_up(width, S::W);
    return round_up(Base::bytes(rows, width), kAlign) + round_up(4 * words, kAlign);
  }
};

// The forward's packed mention up to its keys, then
//   by_width [padded / kPair, stride] words: the keys again, pairs of tokens; rows [padded, stride] floats: V_c.
template <class S, class P>
struct GradientMention : Mention<S, P> {
  using Base = Mention<S, P>;
  static int64_t pairs(int64_t padded) { return (padded + P::kPair - 1) / P::kPair; }
  int64_t stride() const { return round_up(Base::width, S::W); }
  int64_t padded_rows() const { return Base::padded(Base::kept); }
  uint32_t* by_width() const { return Base::key() + round_up(Base::words(Base::kept, Base::width), 16); }
  float* rows() const {
    return reinterpret_cast<float*>(by_width() + round_up(pairs(padded_rows()) * stride(), 16));
  }
  static int64_t bytes(int64_t columns, int64_t width) {
    const int64_t padded = Base::padded(columns), stride = round_up(width, S::W);
    const int64_t words = round_up(Base::words(columns, width), 16) + round_up(pairs(padded) * stride, 16);
    return kAlign + round_up(4 * (words + padded * stride), kAlign);
  }
};

template <class S, class P>
int64_t gradient_group_bytes(int64_t rows, int64_t width) {
  return GradientGroup<S, P>::bytes(rows, width);
}

template <class S, class P>
int64_t gradient_mention_bytes(int64_t columns, int64_t width) {
  return GradientMention<S, P>::bytes(columns, width);
}

// What add() keeps of one mention and one group.
template <class S, class P, class G>
struct Workspace {
  float *attention,         // [rows, padded, W], exp2 of the logits
      *w, *w_gradient,      // [padded, W]
      *context, *gradient,  // [W, stride], of the pooled context
      *gradient_columns;    // [stride, W]
  uint32_t *by_row, *by_column;

  static int64_t block(int64_t rows) { return S::W * (rows < G::kTokens ? rows : G::kTokens); }
  // One row more where X's rows come in pairs.
  static int64_t row_words(int64_t rows, int64_t padded) { return (padded + 1) * block(rows) / G::kPair; }
  static int64_t floats(int64_t rows, int64_t padded, int64_t stride) {
    const int64_t words = row_words(rows, padded) + (G::kPair > 1 ? (padded + 1) / G::kPair * block(rows) : 0);
    return S::W * ((rows + 2) * padded + 3 * stride) + words;
  }
  Workspace(void* scratch, int64_t rows, int64_t padded, int64_t stride) {
    attention = static_cast<float*>(scratch);
    w = attention + rows * padded * S::W;
    w_gradient = w + padded * S::W;
    context = w_gradient + padded * S::W;
    gradient = context + S::W * stride;
    gradient_columns = gradient + S::W * stride;
    by_row = reinterpret_cast<uint32_t*>(gradient_columns + S::W * stride);
    by_column = G::kPair > 1 ? by_row + row_words(rows, padded) : by_row;
  }
};

template <class S, class P, class G>
int64_t gradient_scratch_bytes(int64_t rows, int64_t columns, int64_t width) {
  const int64_t stride = round_up(width, S::W);
  const int64_t add = round_up(4 * Workspace<S, P, G>::floats(rows, Mention<S, P>::padded(columns), stride), kAlign);
  const int64_t forward = scratch_bytes<S, P>(rows, columns, width), pack = round_up(8 * stride, kAlign);
  const int64_t most = add > forward ? add : forward;
  return most > pack ? most : pack;
}

// `kPair` rows [kPair, stride] of floats to one row of words.
template <int kPair>
inline void to_row_of_words(const float* rows, int64_t stride, bool rounded, uint32_t* words) {
  if constexpr (kPair == 1) {
    to_words<1>(rows, stride, rounded, words);
  } else {
    for (int64_t i = 0; i < stride; ++i)
      words[i] = to_bf16(rows[i]) | static_cast<uint32_t>(to_bf16(rows[stride + i])) << 16;
  }
}

template <class S, class P>
void pack_gradient_group(const m3el::G2LEntities& e, const int64_t* lanes, bool rounded, void* scratch, void* packed) {
  pack_group<S, P>(e, lanes, rounded, scratch, packed);
  const auto& group = *static_cast<const GradientGroup<S, P>*>(packed);
  const int64_t stride = group.stride(), element = e.query_format == m3el::Format::f32 ? 4 : 2;
  float* rows = static_cast<float*>(scratch);
  memset(rows, 0, 4 * P::kPair * stride);
  for (int64_t t = 0; t < e.rows; ++t)
    for (int64_t lane = 0; lane < S::W; lane += P::kPair) {
      for (int64_t i = 0; i < P::kPair; ++i) {
        const int64_t from = (lanes[lane + i] * e.rows + t) * e.width * element;
        to_floats(static_cast<const char*>(e.query) + from, e.query_format, e.width, rows + i * stride);
      }
      to_row_of_words<P::kPair>(rows, stride, rounded, group.by_token(t) + lane / P::kPair * stride);
    }
  const int64_t gate_element = e.gate_format == m3el::Format::f32 ? 4 : 2;
  for (int64_t lane = 0; lane < S::W; ++lane) {
    float* row = group.gate() + lane * stride;
    to_floats(static_cast<const char*>(e.gate) + lanes[lane] * e.width * gate_element, e.gate_format, e.width, row);
    for (int64_t i = 0; i < e.width; ++i) row[i] *= e.norm_weight[i];
    for (int64_t i = e.width; i < stride; ++i) row[i] = 0;
  }
}

template <class S, class P>
void pack_gradient_mention(const m3el::G2LMention& m, int64_t width, bool rounded, void* scratch, void* packed) {
  int64_t kept = 0;
  for (int64_t k = 0; k < m.columns; ++k) kept += !m.mask || m.mask[k];
  memset(packed, 0, GradientMention<S, P>::bytes(kept, width));
  *static_cast<Mention<S, P>*>(packed) = {kept, width};
  const auto& mention = *static_cast<const GradientMention<S, P>*>(packed);
  const int64_t steps = Group<S, P>::steps(width), stride = mention.stride();
  const float fold = kLog2e / sqrtf(static_cast<float>(width));
  float* rows = static_cast<float*>(scratch);
  memset(rows, 0, 4 * P::kPair * stride);
  int64_t place = 0;
  for (int64_t k = 0; k < m.columns; ++k) {
    if (m.mask && !m.mask[k]) continue;
    float* row = rows + place % P::kPair * stride;
    for (int64_t i = 0; i < width; ++i) row[i] = m.key[k * width + i] * fold;
    to_words<P::kPair>(row, width, rounded, mention.key() + place * steps);
    if (place % P::kPair == 0) memset(row + stride, 0, 4 * (P::kPair - 1) * stride);
    to_row_of_words<P::kPair>(rows, stride, rounded, mention.by_width() + place / P::kPair * stride);
    double mean = 0;
    for (int64_t i = 0; i < width; ++i) mean += m.value[k * width + i];
    mean /= static_cast<double>(width);
    float* centred = mention.rows() + place * stride;
    for (int64_t i = 0; i < width; ++i) centred[i] = m.value[k * width + i] - static_cast<float>(mean);
    ++place;
  }
}

// A matrix of words whose element (r, s) is at data[r * row + s * step].
struct Left {
  const uint32_t* data;
  int64_t row, step;
};

// out [R, stride] += left [R, steps] b [steps, stride], for V vectors of columns.
template <class S, class Word, int R, int V>
inline void add_block(const Left& left, int64_t steps, const uint32_t* b, int64_t stride, float* out) {
  typename S::F sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = S::load(out + r * stride + v * S::W);
  for (int64_t s = 0; s < steps; ++s) {
    typename Word::V right[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) right[v] = Word::load(b + s * stride + v * S::W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename Word::V own = Word::broadcast(left.data + r * left.row + s * left.step);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = Word::dot(own, right[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) S::store(out + r * stride + v * S::W, sum[r][v]);
}

template <class S, class Word, int R, int V>
inline void add_columns(const Left& left, int64_t rows, int64_t steps, const uint32_t* b, int64_t stride, float* out) {
  for (int64_t r = 0; r < rows; r += R)
    add_block<S, Word, R, V>({left.data + r * left.row, left.row, left.step}, steps, b, stride, out + r * stride);
}

// out [rows, stride] += left [rows, steps] b [steps, stride]; `rows` is a multiple of R, `stride` of W.
template <class S, class Word, int R, int V>
inline void add_product(const Left& left, int64_t rows, int64_t steps, const uint32_t* b, int64_t stride, float* out) {
  int64_t c = 0;
  for (; c + V * S::W <= stride; c += V * S::W) add_columns<S, Word, R, V>(left, rows, steps, b + c, stride, out + c);
  for (; c < stride; c += S::W) add_columns<S, Word, R, 1>(left, rows, steps, b + c, stride, out + c);
}

inline const uint32_t* words(const float* p) { return reinterpret_cast<const uint32_t*>(p); }

// The attention weights and their column means w.
template <class S, class P>
inline void attend(const GradientGroup<S, P>& group, const GradientMention<S, P>& mention, float* attention, float* w) {
  const int64_t block = mention.padded_rows() * S::W;
  memset(w, 0, 4 * block);
  int64_t t = 0;
  for (; t + P::kTokens <= group.rows; t += P::kTokens)
    tokens<S, P, P::kTokens>(group, mention, t, attention + t * block, w);
  last_tokens<S, P, P::kTokens - 1>(group, mention, t, attention + t * block, w);
}

// The pooled context c = w V_c of each entity and score = c . gate / sqrt(|c|^2 / width + eps): the gradients of c (to
// `gradient`) and of the gate.
template <class S, class P>
inline void normalise(const GradientGroup<S, P>& group, const float* context, const float* upstream, float* gradient,
                      float* gate_gradient) {
  using F = typename S::F;
  const int64_t stride = group.stride();
  for (int64_t lane = 0; lane < S::W; ++lane) {
    const float *c = context + lane * stride, *gate = group.gate() + lane * stride;
    F dot = S::set1(0), square = S::set1(0);
    for (int64_t i = 0; i < stride; i += S::W) {
      const F own = S::load(c + i);
      dot = S::fma(own, S::load(gate + i), dot);
      square = S::fma(own, own, square);
    }
    const float width = static_cast<float>(group.width);
    const float rstd = 1.0f / sqrtf(S::sum(square) / width + group.eps), scale = upstream[lane] * rstd;
    const F of_gate = S::set1(scale), of_context = S::set1(-scale * S::sum(dot) * rstd * rstd / width);
    float *to = gradient + lane * stride, *gate_to = gate_gradient + lane * stride;
    for (int64_t i = 0; i < stride; i += S::W) {
      const F own = S::load(c + i);
      S::store(to + i, S::fma(of_gate, S::load(gate + i), S::mul(of_context, own)));
      S::store(gate_to + i, S::fma(of_gate, own, S::load(gate_to + i)));
    }
  }
}

// X of one token: share * ln(2) * A (w_gradient - A . w_gradient), as words.
template <class S, class G>
inline void logit_gradient(const float* attention, const float* share, const float* w_gradient, int64_t padded,
                           int64_t kept, int64_t place, const Words& to) {
  using F = typename S::F;
  F sum = S::set1(0), mean = S::set1(0);
  for (int64_t k = 0; k < kept; ++k) {
    const F own = S::load(attention + k * S::W);
    sum = S::add(sum, own);
    mean = S::fma(own, S::load(w_gradient + k * S::W), mean);
  }
  const F inverse = S::div(S::set1(1), sum);
  const F scale = S::mul(S::mul(S::load(share), S::set1(kLn2)), inverse);
  const F offset = S::mul(S::mul(mean, inverse), S::sub(S::set1(0), scale));
  const auto row = [&](int64_t k) {
    return S::mul(S::load(attention + k * S::W), S::fma(S::load(w_gradient + k * S::W), scale, offset));
  };
  int64_t k = 0;
  for (; k + 2 <= padded; k += 2) G::write(row(k), row(k + 1), k, place, to);
  if (k < padded) G::write(row(k), S::set1(0), k, place, to);
}

template <class S, class P, class G>
void add_gradients(const void* packed_group, const void* packed_mention, const float* upstream, void* scratch,
                   float* group_gradient, float* key_gradient, float* value_gradient) {
  const auto& group = *static_cast<const GradientGroup<S, P>*>(packed_group);
  const auto& mention = *static_cast<const GradientMention<S, P>*>(packed_mention);
  const int64_t kept = mention.kept, padded = mention.padded_rows(), rows = group.rows, stride = group.stride();
  const Workspace<S, P, G> work(scratch, rows, padded, stride);
  const int64_t token = S::W * stride;
  attend<S, P>(group, mention, work.attention, work.w);

  memset(work.context, 0, 4 * token);
  const Left w_of_entities{words(work.w), 1, S::W}, w_of_columns{words(work.w), S::W, 1};
  add_product<S, Single<S>, G::kLanes, G::kVectors>(w_of_entities, S::W, kept, words(mention.rows()), stride,
                                                    work.context);
  normalise<S, P>(group, work.context, upstream, work.gradient, group_gradient + rows * token);
  for (int64_t c = 0; c < stride; c += S::W) {
    const char* rows_of_lanes[S::W];
    for (int64_t lane = 0; lane < S::W; ++lane)
      rows_of_lanes[lane] = reinterpret_cast<const char*>(work.gradient + lane * stride);
    S::transpose(rows_of_lanes, 4 * c, reinterpret_cast<uint32_t*>(work.gradient_columns + c * S::W));
  }
  using Floats = BroadcastEngine<S, Single<S>, P::kRows, 1>;
  Floats::template products<1>(words(mention.rows()), padded, stride, words(work.gradient_columns), work.w_gradient);
  add_product<S, Single<S>, P::kRows, G::kVectors>(w_of_columns, padded, S::W, words(work.gradient), stride,
                                                   value_gradient);

  for (int64_t first = 0; first < rows; first += G::kTokens) {
    const int64_t count = rows - first < G::kTokens ? rows - first : G::kTokens, n = count * S::W;
    const Words x{work.by_row, work.by_column, n};
    for (int64_t t = first; t < first + count; ++t)
      logit_gradient<S, G>(work.attention + t * padded * S::W, group.share() + t * S::W, work.w_gradient, padded, kept,
                           (t - first) * S::W, x);
    add_product<S, G, P::kRows, G::kVectors>({x.by_row, n / G::kPair, 1}, padded, n / G::kPair, group.by_token(first),
                                             stride, key_gradient);
    add_product<S, G, G::kLanes, G::kVectors>({x.by_column, 1, n}, n, mention.pairs(kept), mention.by_width(), stride,
                                              group_gradient + first * token);
  }
}

template <class S, class P, class G>
constexpr m3el::G2LBackwardKernel make_backward_kernel() {
  return {S::W,
          P::kRows,
          gradient_group_bytes<S, P>,
          gradient_mention_bytes<S, P>,
          gradient_scratch_bytes<S, P, G>,
          pack_gradient_group<S, P>,
          pack_gradient_mention<S, P>,
          add_gradients<S, P, G>};
}

}  // namespace
