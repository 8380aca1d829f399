#include "contrastive_run.h"

#include <algorithm>

namespace m3el {

namespace {

template <class Body>
void over_columns(const ContrastiveBlock& block, const Parallel& parallel, const Body& body) {
  parallel.run(ceil_div(block.columns, kContrastiveColumns), [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t begin = task * kContrastiveColumns;
      body(task, begin, std::min(begin + kContrastiveColumns, block.columns));
    }
  });
}

}  // namespace

const ContrastiveKernel& contrastive_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::avx512) return kContrastiveAvx512;
  if (isa == Isa::avx2) return kContrastiveAvx2;
#endif
  (void)isa;
  return kContrastiveScalar;
}

void contrastive_sums(const ContrastiveKernel& kernel, const ContrastiveBlock& block, const Parallel& parallel,
                      float* peak, float* total) {
  const int64_t tasks = ceil_div(block.columns, kContrastiveColumns), size = tasks * kContrastiveRows;
  const Buffer buffer = allocate(8 * size);
  float *row_peak = reinterpret_cast<float*>(buffer.get()), *row_total = row_peak + size;
  over_columns(block, parallel, [&](int64_t task, int64_t begin, int64_t end) {
    const int64_t at = task * kContrastiveRows;
    kernel.sums(block, begin, end, row_peak + at, row_total + at, peak, total);
  });
  kernel.merge(block, tasks, row_peak, row_total, peak, total);
}

void contrastive_coefficients(const ContrastiveKernel& kernel, const ContrastiveBlock& block, const float* lse,
                              const Parallel& parallel, float* out) {
  over_columns(block, parallel, [&](int64_t, int64_t begin, int64_t end) {
    kernel.coefficients(block, begin, end, lse, out);
  });
}

}  // namespace m3el
