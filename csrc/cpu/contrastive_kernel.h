// The kernels of contrastive.h over a vector type; included by one file per ISA level (see g2l_kernel.h). Beside what
// g2l_kernel.h asks of it, the vector type has mul, sum, largest and exp2_or_zero: exp2, and 0 below -126.
#pragma once

#include <math.h>
#include <stdint.h>

#include "contrastive.h"
#include "kernel_parts.h"

namespace {

using m3el::ContrastiveBlock;
using m3el::kContrastiveColumns;
using m3el::kContrastiveRows;

constexpr float kLn2 = 0.69314718055994530942f;
constexpr float kLowest = -1e38f;  // of a sum of nothing; finite, so that no difference of two is NaN

struct Run {
  int64_t begin, end;  // columns of the block
  int64_t item;        // of column 0 if it were in the run
  bool mentions;
};

// The columns begin..end-1 as up to four runs of one side each.
inline int64_t runs_of(const ContrastiveBlock& b, int64_t begin, int64_t end, Run (&runs)[4]) {
  const int64_t a = b.anchors, edge[5] = {0, a, 2 * a, a + b.batch, 2 * b.batch}, item[4] = {0, 0, a, a};
  int64_t count = 0;
  for (int r = 0; r < 4; ++r) {
    const int64_t from = edge[r] - b.first > begin ? edge[r] - b.first : begin;
    const int64_t to = edge[r + 1] - b.first < end ? edge[r + 1] - b.first : end;
    if (from < to) runs[count++] = {from, to, item[r] - edge[r] + b.first, r % 2 == 1};
  }
  return count;
}

struct Row {
  int64_t place, item;
  int64_t itself, partner;  // columns
  bool mention;

  Row(const ContrastiveBlock& b, int64_t i)
      : place(b.first + i), item(place % b.anchors), itself(i),
        partner(place < b.anchors ? i + b.anchors : i - b.anchors), mention(place >= b.anchors) {}
};

// Base-2 logits of columns begin..end-1 of a row, -inf where left_out says so, and behind them up to the next multiple
// of a vector.
template <class S>
inline void row_logits(const ContrastiveBlock& b, const Row& row, const Run* runs, int64_t count, int64_t begin,
                       int64_t end, const uint8_t* left_out, float* out) {
  const float* products = b.products + (row.place - b.first) * b.columns;
  for (int64_t r = 0; r < count; ++r) {
    const Run& run = runs[r];
    const bool same = run.mentions == row.mention;
    const float scale = same ? b.same_scale : b.other_scale, bias = same ? b.same_bias : b.other_bias;
    for (int64_t j = run.begin; j < run.end; ++j) out[j - begin] = scale * products[j] + bias;
    if (b.gold) {
      const int64_t *gold = b.gold + b.first, own = b.gold[row.place];
      for (int64_t j = run.begin; j < run.end; ++j) out[j - begin] = gold[j] == own ? -INFINITY : out[j - begin];
    }
    if (left_out) {
      const uint8_t* flags = left_out + row.item * b.batch + run.item;
      for (int64_t j = run.begin; j < run.end; ++j) out[j - begin] = flags[j] ? -INFINITY : out[j - begin];
    }
  }
  if (begin <= row.itself && row.itself < end) out[row.itself - begin] = b.itself;
  if (begin <= row.partner && row.partner < end)
    out[row.partner - begin] = b.other_scale * products[row.partner];
  for (int64_t j = end - begin; j % S::W; ++j) out[j] = -INFINITY;
}

// All rows' logits [rows, kContrastiveColumns].
template <class S>
inline void block_logits(const ContrastiveBlock& b, int64_t begin, int64_t end, const uint8_t* left_out, float* out) {
  Run runs[4];
  const int64_t count = runs_of(b, begin, end, runs);
  for (int64_t i = 0; i < b.rows; ++i)
    row_logits<S>(b, Row(b, i), runs, count, begin, end, left_out, out + i * kContrastiveColumns);
}

// (peak, total) becomes the sum of both.
template <class S>
inline void add_sums(typename S::F& peak, typename S::F& total, typename S::F other_peak, typename S::F other_total) {
  const auto higher = S::max(peak, other_peak);
  const auto scaled = S::mul(other_total, S::exp2_or_zero(S::sub(other_peak, higher)));
  total = S::fma(total, S::exp2_or_zero(S::sub(peak, higher)), scaled);
  peak = higher;
}

template <class S>
void contrastive_sums(const ContrastiveBlock& b, int64_t begin, int64_t end, float* row_peak, float* row_total,
                      float* peak, float* total) {
  alignas(64) float logits[kContrastiveRows * kContrastiveColumns];
  block_logits<S>(b, begin, end, b.left_out, logits);
  for (int64_t i = 0; i < b.rows; ++i) {
    const float* row = logits + i * kContrastiveColumns;
    auto highest = S::set1(kLowest), sum = S::set1(0);
    for (int64_t j = 0; j < end - begin; j += S::W) highest = S::max(highest, S::load(row + j));
    row_peak[i] = S::largest(highest);
    for (int64_t j = 0; j < end - begin; j += S::W)
      sum = S::add(sum, S::exp2_or_zero(S::sub(S::load(row + j), S::set1(row_peak[i]))));
    row_total[i] = S::sum(sum);
  }
  // the block's own rows are columns as well, and counted as rows already
  const int64_t from = begin > b.rows ? begin : b.rows;
  const int64_t to = end < 2 * b.anchors - b.first ? end : 2 * b.anchors - b.first;
  if (from >= to) return;
  if (b.left_out_back) block_logits<S>(b, begin, end, b.left_out_back, logits);
  for (int64_t j = from; j < to; j += S::W) {
    const float* column = logits + j - begin;
    const int64_t place = b.first + j, n = to - j < S::W ? to - j : S::W;
    auto highest = S::set1(kLowest), sum = S::set1(0);
    for (int64_t i = 0; i < b.rows; ++i) highest = S::max(highest, S::load(column + i * kContrastiveColumns));
    for (int64_t i = 0; i < b.rows; ++i)
      sum = S::add(sum, S::exp2_or_zero(S::sub(S::load(column + i * kContrastiveColumns), highest)));
    auto whole_peak = load_up_to<S>(peak + place, n), whole = load_up_to<S>(total + place, n);
    add_sums<S>(whole_peak, whole, highest, sum);
    store_up_to<S>(peak + place, whole_peak, n);
    store_up_to<S>(total + place, whole, n);
  }
}

template <class S>
void contrastive_merge(const ContrastiveBlock& b, int64_t tasks, const float* row_peak, const float* row_total,
                       float* peak, float* total) {
  for (int64_t i = 0; i < b.rows; i += S::W) {
    const int64_t n = b.rows - i < S::W ? b.rows - i : S::W;
    auto whole_peak = load_up_to<S>(peak + b.first + i, n), whole = load_up_to<S>(total + b.first + i, n);
    for (int64_t t = 0; t < tasks; ++t) {
      const int64_t at = t * kContrastiveRows + i;
      add_sums<S>(whole_peak, whole, load_up_to<S>(row_peak + at, n), load_up_to<S>(row_total + at, n));
    }
    store_up_to<S>(peak + b.first + i, whole_peak, n);
    store_up_to<S>(total + b.first + i, whole, n);
  }
}

template <class S>
void contrastive_coefficients(const ContrastiveBlock& b, int64_t begin, int64_t end, const float* lse, float* out) {
  alignas(64) float there[kContrastiveColumns], back[kContrastiveColumns], of_columns[kContrastiveColumns];
  const int64_t width = end - begin;
  for (int64_t j = 0; j < kContrastiveColumns; ++j) of_columns[j] = j < width ? lse[b.first + begin + j] : INFINITY;
  Run runs[4];
  const int64_t count = runs_of(b, begin, end, runs);
  for (int64_t i = 0; i < b.rows; ++i) {
    const Row row(b, i);
    row_logits<S>(b, row, runs, count, begin, end, b.left_out, there);
    if (b.left_out_back) row_logits<S>(b, row, runs, count, begin, end, b.left_out_back, back);
    const float* other_way = b.left_out_back ? back : there;
    const auto of_row = S::set1(lse[row.place]);
    for (int64_t j = 0; j < width; j += S::W) {
      const auto forth = S::exp2_or_zero(S::sub(S::load(there + j), of_row));
      const auto against = S::exp2_or_zero(S::sub(S::load(other_way + j), S::load(of_columns + j)));
      S::store(there + j, S::add(forth, against));
    }
    if (begin <= row.itself && row.itself < end) there[row.itself - begin] = 0;
    if (begin <= row.partner && row.partner < end) there[row.partner - begin] -= 2;
    float* target = out + i * b.columns;
    for (int64_t r = 0; r < count; ++r) {
      const float factor = kLn2 * (runs[r].mentions == row.mention ? b.same_scale : b.other_scale);
      for (int64_t j = runs[r].begin; j < runs[r].end; ++j) target[j] = factor * there[j - begin];
    }
  }
}

template <class S>
constexpr m3el::ContrastiveKernel make_contrastive() {
  return {contrastive_sums<S>, contrastive_merge<S>, contrastive_coefficients<S>};
}

}  // namespace
