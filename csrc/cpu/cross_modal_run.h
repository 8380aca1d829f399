// Cross-modal contexts of all items on all threads.
#pragma once

#include "cross_modal.h"
#include "isa.h"
#include "parallel.h"

namespace m3el {

const CrossModalKernel& cross_modal_kernel(Isa isa);

// See CrossModalKernel; n items each. No result depends on the number of threads.
void cross_modal_linear(const CrossModalKernel& kernel, const CrossModalLinear& layer, int64_t n,
                        const Parallel& parallel, float* out);
void cross_modal_attend(const CrossModalKernel& kernel, const CrossModalRows& rows, int64_t n,
                        const Parallel& parallel, float* context);
void cross_modal_attend_backward(const CrossModalKernel& kernel, const CrossModalRows& rows, const float* gradient,
                                 int64_t n, const Parallel& parallel, float* query, void* local);
void cross_modal_finish(const CrossModalKernel& kernel, const CrossModalTail& tail, int64_t n,
                        const Parallel& parallel, float* out);
// weights [3 width + 1] is overwritten.
void cross_modal_finish_backward(const CrossModalKernel& kernel, const CrossModalTail& tail, const float* gradient,
                                 int64_t n, const Parallel& parallel, const CrossModalGradients& out, float* weights);

}  // namespace m3el
