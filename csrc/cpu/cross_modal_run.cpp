#include "cross_modal_run.h"

#include <algorithm>
#include <vector>

namespace m3el {

namespace {

// The gradients of weights are summed over this many parts of the items, whatever the number of threads.
constexpr int64_t kParts = 64;

}  // namespace

const CrossModalKernel& cross_modal_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::avx512) return kCrossModalAvx512;
  if (isa == Isa::avx2) return kCrossModalAvx2;
#endif
  (void)isa;
  return kCrossModalScalar;
}

void cross_modal_linear(const CrossModalKernel& kernel, const CrossModalLinear& layer, int64_t n,
                        const Parallel& parallel, float* out) {
  parallel.run(n, [&](int64_t begin, int64_t end) { kernel.linear(layer, begin, end, out); });
}

void cross_modal_attend(const CrossModalKernel& kernel, const CrossModalRows& rows, int64_t n,
                        const Parallel& parallel, float* context) {
  parallel.run(n, [&](int64_t begin, int64_t end) {
    const Buffer scratch = allocate(kernel.scratch_bytes(rows.tokens, rows.width));
    kernel.attend(rows, begin, end, scratch.get(), context);
  });
}

void cross_modal_attend_backward(const CrossModalKernel& kernel, const CrossModalRows& rows, const float* gradient,
                                 int64_t n, const Parallel& parallel, float* query, void* local) {
  parallel.run(n, [&](int64_t begin, int64_t end) {
    const Buffer scratch = allocate(kernel.scratch_bytes(rows.tokens, rows.width));
    kernel.attend_backward(rows, gradient, begin, end, scratch.get(), query, local);
  });
}

void cross_modal_finish(const CrossModalKernel& kernel, const CrossModalTail& tail, int64_t n,
                        const Parallel& parallel, float* out) {
  parallel.run(n, [&](int64_t begin, int64_t end) {
    const Buffer scratch = allocate(kernel.scratch_bytes(0, tail.width));
    kernel.finish(tail, begin, end, scratch.get(), out);
  });
}

void cross_modal_finish_backward(const CrossModalKernel& kernel, const CrossModalTail& tail, const float* gradient,
                                 int64_t n, const Parallel& parallel, const CrossModalGradients& out, float* weights) {
  const int64_t size = 3 * tail.width + 1, parts = std::min(n, kParts);
  std::vector<float> partial(parts * size);
  parallel.run(parts, [&](int64_t first, int64_t last) {
    const Buffer scratch = allocate(kernel.scratch_bytes(0, tail.width));
    for (int64_t part = first; part < last; ++part)
      kernel.finish_backward(tail, gradient, part * n / parts, (part + 1) * n / parts, scratch.get(), out,
                             partial.data() + part * size);
  });
  for (int64_t i = 0; i < size; ++i) {
    double total = 0;
    for (int64_t part = 0; part < parts; ++part) total += partial[part * size + i];
    weights[i] = static_cast<float>(total);
  }
}

}  // namespace m3el
