// One block of the contrastive losses on all threads.
#pragma once

#include "contrastive.h"
#include "isa.h"
#include "parallel.h"

namespace m3el {

const ContrastiveKernel& contrastive_kernel(Isa isa);

// Adds a block to the sums of exponentials of its anchors, peak and total [2 batch] by place. The result does not
// depend on the number of threads.
void contrastive_sums(const ContrastiveKernel& kernel, const ContrastiveBlock& block, const Parallel& parallel,
                      float* peak, float* total);

// See ContrastiveKernel::coefficients.
void contrastive_coefficients(const ContrastiveKernel& kernel, const ContrastiveBlock& block, const float* lse,
                              const Parallel& parallel, float* out);

}  // namespace m3el
