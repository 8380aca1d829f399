// One mention's side of rerank_g2l in a block of threads: its operands in shared memory, and a warp's steps with them.
#pragma once

#include <cmath>

#include "rerank_plan.h"
#include "rerank_rows.h"

namespace m3el::gpu {

constexpr int kTileCounts[] = {2, 4, 5, 7, 8, 10, 16};  // tiles of 8 mention tokens that there is a kernel for

// Of a kernel for `tiles`: the first tile that may have columns behind the last mention token.
constexpr int first_ragged(int tiles) {
  int below = 0;
  for (const int count : kTileCounts)
    if (count < tiles) below = count;
  return below;
}

// Two tiles of 16 rows of query read each fragment of the key once, where registers allow.
constexpr int row_tiles(int tiles) { return tiles <= 8 ? 2 : 1; }
constexpr int most_warps(int tiles) { return tiles <= 4 ? 16 : tiles <= 7 ? 12 : 8; }

__device__ __forceinline__ void multiply(const uint4& a, uint32_t b0, uint32_t b1, float (&d)[4]) {
  mma_bf16(d, {a.x, a.y, a.z, a.w}, {b0, b1});
}

// Values `at` to `at + 7` of a row of a matrix [tokens, width] in bf16; zeros behind its ends.
template <class T>
__device__ __forceinline__ uint4 eight(const T* matrix, int row, int at, int tokens, int width, bool pieces) {
  float x[8] = {};
  if (row < tokens) read_row(matrix + static_cast<int64_t>(row) * width, at, width, pieces, x);
  return pack_piece(x);
}

// `row` and `quad` are a lane's place in tile products: rows `row` and `row + 8` of a, column `row` of b, and of d
// those rows' columns 2 quad and 2 quad + 1.
template <int kTiles, bool kResident>
struct Mention {
  static constexpr int kPairs = (kTiles + 1) / 2, kGramStride = 16 * kPairs, kWStride = w_stride(kTiles);
  static constexpr int kRowTiles = row_tiles(kTiles), kRagged = kResident ? first_ragged(kTiles) : 0;

  const G2LPart& part;
  const G2LPlan& plan;
  const int mention, lane, row, quad;

  __device__ __forceinline__ Mention(const G2LPart& part, const G2LPlan& plan, int mention)
      : part(part), plan(plan), mention(mention), lane(threadIdx.x % 32), row(lane / 4), quad(lane % 4) {}

  __device__ __forceinline__ const uint16_t* key() const {
    return part.key + static_cast<int64_t>(mention) * part.mention_tokens * part.width;
  }
  __device__ __forceinline__ const float* centred() const {
    return part.centred + static_cast<int64_t>(mention) * part.mention_tokens * part.width;
  }
  __device__ __forceinline__ const float* gram() const {
    return part.gram + static_cast<int64_t>(mention) * part.mention_tokens * part.mention_tokens;
  }
  static __device__ __forceinline__ unsigned char* shared() { return dynamic_shared<unsigned char>(); }
  __device__ __forceinline__ float* norm() const { return reinterpret_cast<float*>(shared() + plan.norm); }

  __device__ __forceinline__ int* rows() const { return reinterpret_cast<int*>(shared() + plan.rows); }

  static __device__ __forceinline__ uint4 piece(const unsigned char* at) { return *reinterpret_cast<const uint4*>(at); }
  static __device__ __forceinline__ float4 four(const float* at) { return *reinterpret_cast<const float4*>(at); }

  template <class T>
  __device__ __forceinline__ void eight_of(const T* matrix, int of, int at, bool pieces, uint32_t (&v)[4]) const {
    const uint4 x = eight(matrix, of, at, part.mention_tokens, part.width, pieces);
    v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
  }

  // Fills the block's shared memory: the key and the centred values as fragments of tile products, 16 bytes a lane, the
  // Gram matrix, LayerNorm, and each candidate's row of query, -1 for none.
  __device__ __forceinline__ void load(const Candidates& all, int first, int count) const {
    // piece c of 8 tokens: a lane's values 16 s + 8 h + 2 quad and the next of its row, for s and h in 0..1
    uint32_t* to = reinterpret_cast<uint32_t*>(shared());
    for (int i = threadIdx.x / 32; i < plan.pieces * kTiles; i += plan.warps) {
      uint32_t v[4];
      eight_of(key(), i % kTiles * 8 + row, i / kTiles * kPiece + 8 * quad, plan.key_pieces, v);
#pragma unroll
      for (int j = 0; j < 4; ++j) to[(i * 32 + 4 * row + j) * 4 + quad] = v[j];
    }
    // piece c of 16 tokens, half s of it: values 8 quad + 4 s to 8 quad + 4 s + 3 of rows `row` and `row + 8`
    to = reinterpret_cast<uint32_t*>(shared() + plan.value);
    for (int i = threadIdx.x / 32; i < plan.pieces * 2 * kPairs; i += plan.warps) {
      uint32_t v[4];
      eight_of(centred(), i % (2 * kPairs) * 8 + row, i / (2 * kPairs) * kPiece + 8 * quad, plan.centred_pieces, v);
#pragma unroll
      for (int j = 0; j < 4; ++j) to[(i / 2 * 64 + j / 2 * 32 + lane) * 4 + i % 2 + j % 2 * 2] = v[j];
    }
    if constexpr (kResident) {
      const int tokens = part.mention_tokens;
      for (int i = threadIdx.x; i < tokens * kGramStride; i += blockDim.x) {
        const int a = i / kGramStride, b = i % kGramStride;
        reinterpret_cast<float*>(shared() + plan.gram)[i] = b < tokens ? gram()[a * tokens + b] : 0.0f;
      }
    }
    const int padded = plan.pieces * kPiece;
    for (int i = threadIdx.x; i < padded; i += blockDim.x) {
      norm()[i] = i < part.width ? part.norm_weight[i] : 0.0f;
      norm()[padded + i] = i < part.width ? part.norm_bias[i] : 0.0f;
    }
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const int64_t id = candidate(all, mention, first + i);
      const int64_t at = id < 0 || part.row == nullptr ? id : part.row[id];
      rows()[i] = at >= 0 && at < part.rows ? static_cast<int>(at) : -1;
    }
  }

  // Stages rows of query from `token` on. What lies behind them and behind their width stays as it is: zeros or, as
  // there are two slots, the same candidate's stage before last.
  __device__ __forceinline__ void stage(int of, int token, unsigned char* to) const {
    const int count = min(plan.stage_rows, part.entity_tokens - token);
    const int64_t first = (static_cast<int64_t>(of) * part.entity_tokens + token) * part.width;
    if (part.query_bf16 && plan.query_pieces) {
      const unsigned char* from = static_cast<const unsigned char*>(part.query) + 2 * first + 16 * lane;
      const int across = part.width / 8, gap = plan.stride - 16 * across;
      for (int i = lane; i < count * across; i += 32, from += 512)
        cp_async(to + 16 * i + (i * plan.reciprocal >> 16) * gap, from);
    } else {
      const int across = 4 * plan.pieces;
      for (int i = lane; i < count * across; i += 32) {
        const int line = i / across, at = i % across * 8;
        *reinterpret_cast<uint4*>(to + line * plan.stride + 2 * at) =
            part.query_bf16
                ? eight(static_cast<const uint16_t*>(part.query) + first, line, at, count, part.width, false)
                : eight(static_cast<const float*>(part.query) + first, line, at, count, part.width, plan.query_pieces);
      }
    }
  }

  // Adds the attention of `count` staged rows to w: columns 2 quad and 2 quad + 1 of each tile, of the lane's own rows.
  __device__ __forceinline__ void attend(const unsigned char* staged, int count, float (&w)[kTiles][2]) const {
    if (kRowTiles > 1 && count > 16)
      attend_tiles<kRowTiles>(staged, count, w);
    else
      attend_tiles<1>(staged, count, w);
  }

  template <int kRows>
  __device__ __forceinline__ void attend_tiles(const unsigned char* staged, int count, float (&w)[kTiles][2]) const {
    float x[kRows][kTiles][4] = {};
    const unsigned char* query[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      // a tile's last 8 rows may not be there: any others will do
      const int line = 16 * r + lane % 8 + (count > 16 * r + 8 ? lane & 8 : 0);
      query[r] = staged + line * plan.stride + lane / 16 * 16;
    }
    const unsigned char* keys = shared() + 16 * lane;
#pragma unroll 1
    for (int c = 0; c < plan.pieces; ++c, keys += kTiles * 512) {
      uint4 a[kRows][2];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        a[r][0] = load_matrices(query[r] + 2 * kPiece * c);
        a[r][1] = load_matrices(query[r] + 2 * kPiece * c + kPiece);
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const uint4 b = piece(keys + 512 * n);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          multiply(a[r][0], b.x, b.y, x[r][n]);
          multiply(a[r][1], b.z, b.w, x[r][n]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (count > 16 * r + 8 * half) add_attention(x[r], half, 16 * r + 8 * half + row < count, w);
  }

  // One row of logits in base 2 for each `row`: adds its softmax / entity tokens to w, nothing unless it `counts`.
  __device__ __forceinline__ void add_attention(const float (&x)[kTiles][4], int half, bool counts,
                                                float (&w)[kTiles][2]) const {
    const int left = part.mention_tokens - 2 * quad;  // columns from the lane's first one on
    float e[kTiles][2], top = -INFINITY;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        e[n][j] = x[n][2 * half + j];
        if (n >= kRagged && 8 * n + j >= left) e[n][j] = -INFINITY;
      }
      top = fmaxf(top, fmaxf(e[n][0], e[n][1]));
    }
    top = fmaxf(top, __shfl_xor_sync(kWarp, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kWarp, top, 2));
    float sum[2] = {};
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) sum[j] += e[n][j] = exp2_approx(e[n][j] - top);
    const float total = add_lanes<3>(sum[0] + sum[1]);
    const float share = counts ? __fdividef(1.0f / part.entity_tokens, total) : 0.0f;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) w[n][j] = fmaf(e[n][j], share, w[n][j]);
  }

  // w's sums over all rows, to shared memory [8 tiles].
  __device__ __forceinline__ void store_w(const float (&w)[kTiles][2], float* to) const {
#pragma unroll
    for (int first = 0; first < kTiles; first += 8) {
      float v[8][2];
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) v[n][j] = first + n < kTiles ? w[min(first + n, kTiles - 1)][j] : 0.0f;
      // each step halves the tiles that a lane holds and the lanes that share one: row r ends with tile r
#pragma unroll
      for (int half = 4; half > 0; half /= 2)
#pragma unroll
        for (int n = 0; n < half; ++n)
          if (first + n < kTiles)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              const float mine = row & half ? v[n + half][j] : v[n][j], other = row & half ? v[n][j] : v[n + half][j];
              v[n][j] = mine + __shfl_xor_sync(kWarp, other, 4 * half);
            }
      if (first + row < kTiles)
        *reinterpret_cast<float2*>(to + 8 * (first + row) + 2 * quad) = make_float2(v[0][0], v[0][1]);
    }
  }

  // The score of the lane's candidate, number `row` of 8, from w [8, kWStride] of all 8. `of`: its row of the gate.
  __device__ __forceinline__ float finish(const float* w, int of) const {
    float bias = 0.0f, u[kPairs][4] = {};  // u [16 tokens, 8 candidates] = centred (gate norm_weight)^T
#pragma unroll 1
    for (int c = 0; c < plan.pieces; ++c) {
      const int at = c * kPiece + 8 * quad;
      float gate[8] = {};
      if (of >= 0) {
        const int64_t first = static_cast<int64_t>(of) * part.width;
        if (part.gate_bf16)
          read_row(static_cast<const uint16_t*>(part.gate) + first, at, part.width, plan.gate_pieces, gate);
        else
          read_row(static_cast<const float*>(part.gate) + first, at, part.width, plan.gate_pieces, gate);
      }
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        const float4 weight = four(norm() + at + i), shift = four(norm() + plan.pieces * kPiece + at + i);
        bias = fmaf(gate[i + 1], shift.y, fmaf(gate[i], shift.x, bias));
        bias = fmaf(gate[i + 3], shift.w, fmaf(gate[i + 2], shift.z, bias));
        gate[i] *= weight.x, gate[i + 1] *= weight.y, gate[i + 2] *= weight.z, gate[i + 3] *= weight.w;
      }
      const uint4 weighted = pack_piece(gate);
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        const unsigned char* value = shared() + plan.value + ((c * kPairs + p) * 64 + lane) * 16;
        multiply(piece(value), weighted.x, weighted.y, u[p]);
        multiply(piece(value + 512), weighted.z, weighted.w, u[p]);
      }
    }
    float dot[2] = {};
#pragma unroll
    for (int p = 0; p < kPairs; ++p)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        dot[i % 2] = fmaf(u[p][i], w[(2 * quad + i % 2) * kWStride + 16 * p + 8 * (i / 2) + row], dot[i % 2]);
    dot[0] = add_lanes<28>(dot[0]), dot[1] = add_lanes<28>(dot[1]);
    const float even = __shfl_sync(kWarp, dot[0], row / 2), odd = __shfl_sync(kWarp, dot[1], row / 2);

    const float variance = fmaxf(add_lanes<3>(quadratic_form(w + row * kWStride)), 0.0f) / part.width;
    return part.scale * fmaf(row % 2 ? odd : even, rsqrtf(variance + part.eps), add_lanes<3>(bias));
  }

  // The lane's share in w^T G w of one candidate: columns 16 p + 4 quad to 16 p + 4 quad + 3.
  __device__ __forceinline__ float quadratic_form(const float* w) const {
    float4 own[kPairs];
#pragma unroll
    for (int p = 0; p < kPairs; ++p) own[p] = four(w + 16 * p + 4 * quad);
    float form = 0.0f;
#pragma unroll(kResident ? 4 : 1)
    for (int i = 0; i < part.mention_tokens; ++i) {
      float t = 0.0f;
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        const float4 g = gram_piece(i, 16 * p + 4 * quad);
        t = fmaf(g.w, own[p].w, fmaf(g.z, own[p].z, fmaf(g.y, own[p].y, fmaf(g.x, own[p].x, t))));
      }
      form = fmaf(w[i], t, form);
    }
    return form;
  }

  __device__ __forceinline__ float4 gram_piece(int a, int b) const {
    if constexpr (kResident) {
      return four(reinterpret_cast<const float*>(shared() + plan.gram) + a * kGramStride + b);
    } else {
      float x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        x[i] = b + i < part.mention_tokens ? gram()[a * part.mention_tokens + b + i] : 0.0f;
      return make_float4(x[0], x[1], x[2], x[3]);
    }
  }
};

}  // namespace m3el::gpu
