// The contrastive losses (spec section 2) on blocks of inner products, and what the kernel of each ISA level does.
//
// The rows of both sides stand in one order of 2 batch places: the anchors' entities, their mentions, the other
// entities, the other mentions. A block holds the products of some anchors with themselves and with all later places,
// each pair once: both of its ways, from the row to the column and back, come from it. Logits are in base 2.
#pragma once

#include <stdint.h>

namespace m3el {

constexpr int64_t kContrastiveRows = 128;    // the most rows of a block
constexpr int64_t kContrastiveColumns = 64;  // of a task

struct ContrastiveBlock {
  const float* products;  // [rows, columns]: of the places first + row and first + column
  int64_t first, rows, columns;
  int64_t anchors, batch;                            // of one side
  float same_scale, same_bias;                       // base-2 logit = scale * product + bias; of one side
  float other_scale, other_bias;                     // of two sides; a pair that belongs together has no bias
  float itself;                                      // base-2 logit of a row with itself
  const int64_t* gold;                               // [2 batch] or null: equal ones, of two items, are left out
  const uint8_t *left_out, *left_out_back;           // [batch, batch] or null: item of the row, item of the column;
                                                     // and the same transposed
};

struct ContrastiveKernel {
  // Adds columns begin..end-1 (up to kContrastiveColumns) to the sums of exponentials, each a largest logit and a sum
  // relative to it: those of the rows to row_peak and row_total [kContrastiveRows], overwritten; those of the columns
  // that are anchors behind the block's rows to peak and total [2 batch], by place.
  void (*sums)(const ContrastiveBlock& block, int64_t begin, int64_t end, float* row_peak, float* row_total,
               float* peak, float* total);
  // Adds `tasks` of the rows' sums, [tasks, kContrastiveRows], to peak and total.
  void (*merge)(const ContrastiveBlock& block, int64_t tasks, const float* row_peak, const float* row_total,
                float* peak, float* total);
  // out [rows, columns]: the derivative of the sum of the anchors' losses by each product, both ways added.
  // lse [2 batch]: logarithms of the whole sums in base 2; infinity where the place is no anchor.
  void (*coefficients)(const ContrastiveBlock& block, int64_t begin, int64_t end, const float* lse, float* out);
};

extern const ContrastiveKernel kContrastiveScalar;
#if defined(__x86_64__)
extern const ContrastiveKernel kContrastiveAvx2, kContrastiveAvx512;
#endif

}  // namespace m3el
