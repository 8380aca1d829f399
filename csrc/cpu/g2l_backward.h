// Gradients of the global-to-local scores, as every ISA level implements them; g2l.h has the scores.
#pragma once

#include "g2l.h"

namespace m3el {

// Gradients are summed up in rows of `stride` = width rounded up to `lanes` floats:
//   group: [rows + 1, lanes, stride], of the query's tokens and of norm weight * gate;
//   key, value: [columns rounded up to `row_block`, stride], of log2(e) / sqrt(width) * key and of the centred value,
//   the columns that take part in their order.
struct G2LBackwardKernel {
  int64_t lanes, row_block;
  // Bytes of a packed group, of a packed mention, and of a thread's scratch; multiples of 64.
  int64_t (*group_bytes)(int64_t rows, int64_t width);
  int64_t (*mention_bytes)(int64_t columns, int64_t width);
  int64_t (*scratch_bytes)(int64_t rows, int64_t columns, int64_t width);
  // As in g2l.h. A level without bf16 instructions does not round the gradient of the logits, an operand as well.
  void (*pack_group)(const G2LEntities& entities, const int64_t* rows, bool rounded, void* scratch, void* group);
  void (*pack_mention)(const G2LMention& mention, int64_t width, bool rounded, void* scratch, void* packed);
  // Adds what the scores of one mention and one group, whose gradients are `upstream` [lanes], give to both.
  void (*add)(const void* group, const void* mention, const float* upstream, void* scratch, float* group_gradient,
              float* key_gradient, float* value_gradient);
};

extern const G2LBackwardKernel kG2LBackwardScalar;
#if defined(__x86_64__)
extern const G2LBackwardKernel kG2LBackwardAvx2, kG2LBackwardAvx512, kG2LBackwardAvx512bf16;
#endif

}  // namespace m3el
