// Global-to-local scores of whole blocks and of lists of pairs: which group and mention a thread packs and scores when.
#pragma once

#include "g2l.h"
#include "isa.h"
#include "parallel.h"

namespace m3el {

struct G2LMentions {
  const float* key;     // [count, columns, width]
  const float* value;   // [count, columns, width]
  const uint8_t* mask;  // [count, columns], or null
  int64_t count, columns;
};

const G2LKernel& g2l_kernel(Isa isa, bool bf16);

// out [mentions.count, n]; rows [n] names the entities, null = 0..n-1.
void g2l_scores(const G2LKernel& kernel, bool bf16, const G2LEntities& entities, const int64_t* rows, int64_t n,
                const G2LMentions& mentions, const Parallel& parallel, float* out);

// out [n]: the scores of the pairs (mention[i], entity[i]); neighbours of the same mention are scored together.
void g2l_pairs(const G2LKernel& kernel, bool bf16, const G2LEntities& entities, const G2LMentions& mentions,
               const int64_t* mention, const int64_t* entity, int64_t n, const Parallel& parallel, float* out);

}  // namespace m3el
