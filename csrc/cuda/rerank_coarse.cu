// The coarse part of the union score: inner products of each mention with its own candidates' rows.
//
// Limit: the rows' bytes, read once: 1,024 mentions x 1,000 candidates x 800 values in bf16 are 1.6 GB, 0.49 ms at 3.35
// TB/s. A warp takes four candidates together, which puts 2 KB under way in each of a multiprocessor's 32 warps; the
// mention's row comes from the L1 cache.
#include "rerank_rows.h"

namespace m3el::gpu {

namespace {

constexpr int kWarps = 8, kTogether = 4;

// SASS of rerank_coarse_kernel: 16-byte loads
template <class T>
__global__ void __launch_bounds__(32 * kWarps)
    rerank_coarse_kernel(Candidates all, const float* __restrict__ mention, const T* __restrict__ entity, int64_t width,
                         bool mention_pieces, bool entity_pieces, int blocks, float* __restrict__ scores) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t m = blockIdx.x / blocks;
  const int first = (blockIdx.x % blocks * kWarps + warp) * kTogether;
  int64_t id[kTogether];
  bool any = false;
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    id[i] = first + i < all.columns ? candidate(all, m, first + i) : -1;
    any |= id[i] >= 0;
  }
  if (!any) return;

  float sum[kTogether] = {};
  for (int64_t at = 8 * lane; at < width; at += 256) {
    float x[8], y[kTogether][8];
    // an absent candidate's product with any row is as good as none
#pragma unroll
    for (int i = 0; i < kTogether; ++i)
      read_row(entity + max(id[i], int64_t{0}) * width, at, width, entity_pieces, y[i]);
    if (mention_pieces) {
      const float4* piece = reinterpret_cast<const float4*>(mention + m * width + at);
      const float4 a = piece[0], b = piece[1];
      x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    } else {
      read_row(mention + m * width, at, width, false, x);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[i] = fmaf(x[j], y[i][j], sum[i]);
  }
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    sum[i] = add_lanes<31>(sum[i]);
    if (lane == i && id[i] >= 0) scores[m * all.columns + first + i] = sum[i];
  }
}

template <class T>
void start(const Candidates& all, const Coarse& coarse, float* scores, void* stream) {
  const int blocks = (all.columns + kWarps * kTogether - 1) / (kWarps * kTogether);
  const T* entity = static_cast<const T*>(coarse.entity);
  launch("rerank_coarse", rerank_coarse_kernel<T>, dim3(static_cast<unsigned>(all.mentions * blocks)), 32 * kWarps, 0,
         stream, all, coarse.mention, entity, coarse.width, in_pieces(coarse.mention, coarse.width),
         in_pieces(entity, coarse.width), blocks, scores);
}

}  // namespace

void rerank_coarse(const Candidates& candidates, const Coarse& coarse, float* scores, void* stream) {
  if (coarse.bf16)
    start<uint16_t>(candidates, coarse, scores, stream);
  else
    start<float>(candidates, coarse, scores, stream);
}

}  // namespace m3el::gpu
