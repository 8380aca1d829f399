// Gradients of the global-to-local scores of a whole block.
#pragma once

#include "g2l_backward.h"
#include "g2l_run.h"

namespace m3el {

// All fp32, in the shapes of what they are gradients of.
struct G2LGradients {
  float *query, *gate, *key, *value, *norm_weight, *norm_bias;
};

const G2LBackwardKernel& g2l_backward_kernel(Isa isa, bool bf16);

// upstream [mentions.count, n]: gradients of the scores that g2l_scores gives for entities 0..n-1. The result does not
// depend on the number of threads.
void g2l_backward(const G2LBackwardKernel& kernel, bool bf16, const G2LEntities& entities, int64_t n,
                  const G2LMentions& mentions, const float* upstream, const Parallel& parallel,
                  const G2LGradients& out);

}  // namespace m3el
