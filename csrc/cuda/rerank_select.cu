// The k best of each mention's candidates: a block sorts one mention's columns in shared memory.
//
// A column is one 64-bit key: the order of its score above the complement of its number, so that keys are distinct and
// the earlier of two equal scores comes first. At most 2,048 keys: 66 steps of a bitonic network, some microseconds a
// block and under 1% of the scores' own time; its result depends on no order of threads.
#include <algorithm>
#include <cmath>

#include "rerank_rows.h"

namespace m3el::gpu {

namespace {

using Key = unsigned long long;

constexpr uint32_t kAbsent = 0, kNan = 1;  // below the order of any number

__device__ __forceinline__ uint32_t order_of(float value) {
  if (value != value) return kNan;
  const uint32_t bits = __float_as_uint(value + 0.0f);  // -0.0 becomes 0.0
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// One column's score, its parts in `planes` planes that lie `apart` values from each other.
__device__ __forceinline__ float sum_of(const float* scores, int planes, int64_t apart) {
  float sum = scores[0];
  for (int i = 1; i < planes; ++i) sum += scores[i * apart];
  return sum;
}

// SASS of rerank_select_kernel: nothing
__global__ void __launch_bounds__(512)
    rerank_select_kernel(Candidates all, const float* __restrict__ scores, int planes, int k, int padded,
                         float* __restrict__ values, int64_t* __restrict__ ids, float* __restrict__ parts) {
  Key* keys = dynamic_shared<Key>();
  const int64_t m = blockIdx.x, apart = all.mentions * all.columns;
  const int thread = threadIdx.x, threads = blockDim.x;
  for (int i = thread; i < padded; i += threads) {
    uint32_t order = kAbsent, column = 0;
    if (i < all.columns) {
      column = ~static_cast<uint32_t>(i);
      if (candidate(all, m, i) >= 0) order = order_of(sum_of(scores + m * all.columns + i, planes, apart));
    }
    keys[i] = static_cast<Key>(order) << 32 | column;
  }
  __syncthreads();
  for (int run = 2; run <= padded; run *= 2)
    for (int distance = run / 2; distance > 0; distance /= 2) {
      for (int i = thread; i < padded / 2; i += threads) {
        const int low = 2 * i - (i & (distance - 1)), high = low + distance;
        const Key a = keys[low], b = keys[high];
        if ((low & run) == 0 ? a < b : a > b) keys[low] = b, keys[high] = a;  // falling runs, then rising ones
      }
      __syncthreads();
    }
  for (int i = thread; i < k; i += threads) {
    const Key key = keys[i];
    const bool absent = key >> 32 == kAbsent;
    const int column = static_cast<int>(~static_cast<uint32_t>(key));
    const float* from = scores + m * all.columns + column;
    const int64_t to = m * k + i;
    values[to] = absent ? -INFINITY : sum_of(from, planes, apart);
    ids[to] = absent ? -1 : all.ids[m * all.columns + column];
    for (int p = 0; p < planes; ++p) parts[p * all.mentions * k + to] = absent ? -INFINITY : from[p * apart];
  }
}

}  // namespace

void rerank_select(const Candidates& candidates, const float* scores, int planes, int k, float* values, int64_t* ids,
                   float* parts, void* stream) {
  int padded = 2;
  while (padded < candidates.columns) padded *= 2;
  launch("rerank_select", rerank_select_kernel, dim3(static_cast<unsigned>(candidates.mentions)),
         std::clamp(padded / 2, 32, 512), padded * sizeof(Key), stream, candidates, scores, planes, k, padded, values,
         ids, parts);
}

}  // namespace m3el::gpu
