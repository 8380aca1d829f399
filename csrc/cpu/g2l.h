// Global-to-local scores (spec section 5.2), as every ISA level implements them.
//
// A group is one vector of entities, entity = lane: token t of all of them is multiplied with each mention token, so
// that softmax, row sums, column means, Gram form and dot run lane by lane. No horizontal operation is needed, any
// number of tokens fits without padding, and a score does not depend on the lane or on the neighbours.
#pragma once

#include <stdint.h>

#include "format.h"

namespace m3el {

// The entities' side. Row u of query starts at query + u * rows * width elements.
struct G2LEntities {
  const void* query;        // [U, rows, width] of query_format
  const void* gate;         // [U, width] of gate_format
  const uint8_t* mask;      // [U, rows], or null
  Format query_format, gate_format;
  int64_t rows, width;
  const float* norm_weight;  // [width]
  const float* norm_bias;    // [width]
  float eps;
};

// One mention's side in the caller's layout.
struct G2LMention {
  const float* key;     // [columns, width]
  const float* value;   // [columns, width]
  const uint8_t* mask;  // [columns], or null
  int64_t columns;
};

// What a level does. `rounded` stands for bf16 products: a level without bf16 instructions rounds the operands.
struct G2LKernel {
  int64_t lanes;
  bool bf16;  // products are of bf16 operands whether asked or not
  // Bytes of a packed group, of a packed mention, and of a thread's scratch; multiples of 64.
  int64_t (*group_bytes)(int64_t rows, int64_t width);
  int64_t (*mention_bytes)(int64_t columns, int64_t width);
  int64_t (*scratch_bytes)(int64_t rows, int64_t columns, int64_t width);
  // Buffers are 64-byte aligned. `rows` names the entities of the lanes.
  void (*pack_group)(const G2LEntities& entities, const int64_t* rows, bool rounded, void* scratch, void* group);
  void (*pack_mention)(const G2LMention& mention, int64_t width, bool rounded, void* scratch, void* packed);
  // Scores of one mention against the entities of one group: `lanes` values.
  void (*score)(const void* group, const void* mention, void* scratch, float* out);
  // Around a thread's calls of score.
  void (*enter)();
  void (*leave)();
};

extern const G2LKernel kG2LScalar;
#if defined(__x86_64__)
extern const G2LKernel kG2LAvx2, kG2LAvx512, kG2LAvx512bf16, kG2LAmx;
#endif

}  // namespace m3el
