// How the launches of rerank_g2l divide shared memory and work: plain C++, for host and device.
#pragma once

#include <algorithm>
#include <cstddef>

#include "rerank.h"

namespace m3el::gpu {

constexpr int kBatch = 8;     // candidates whose last steps a warp takes together: the columns of a tile product
constexpr int kSlots = 2;     // stages of rows of query that a warp has: one in use, one under way
constexpr int kPiece = 32;    // values of the width of a step: two tile products' sums, 64 bytes in bf16
constexpr int kFewWarps = 4;  // fewer do not keep a multiprocessor busy

// Values of one candidate's w in shared memory, for `tiles` tiles of 8 mention tokens: whole tiles of 16, and 4 more
// against bank conflicts.
constexpr int w_stride(int tiles) { return (tiles + 1) / 2 * 16 + 4; }

// Places in shared memory are in bytes.
struct G2LPlan {
  int blocks, columns;  // of one mention; columns of one block
  int warps;
  int pieces;      // of the width, the last one filled up with zeros
  int stage_rows;  // rows of query that a warp stages at a time, a multiple of 8
  int stride;      // bytes between them: an odd multiple of 16, so that 8 rows' pieces of 16 lie in different banks
  int reciprocal;  // 2^16 / 16-byte pieces of a row of query, rounded up
  int value, gram, norm, rows, warp_memory;  // behind the key
  bool query_pieces, gate_pieces, key_pieces, centred_pieces;  // whether each is read 16 bytes at a time
  int warp_bytes;  // of one warp: kSlots stages, then w [kBatch, w_stride]
};

inline int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

inline size_t shared_bytes(const G2LPlan& plan) { return plan.warp_memory + size_t{1} * plan.warps * plan.warp_bytes; }

// `tiles` of 8 mention tokens; `resident`: the Gram matrix lies in shared memory as well; `groups`: most rows / 8 of a
// stage; `limit`: bytes of shared memory that a block may have. warps == 0: it does not fit. No choice here changes a
// bit of a score.
inline G2LPlan plan_g2l(const Candidates& all, const G2LPart& part, int tiles, bool resident, int groups,
                        int most_warps, int limit, int multiprocessors) {
  G2LPlan plan{};
  plan.columns = all.columns;
  int64_t least = INT64_MAX;
  for (int blocks = 1; blocks <= std::min(multiprocessors, all.columns); ++blocks) {
    // as if every multiprocessor took one block at a time, whose start costs as much as one candidate of each warp
    const int columns = ceil_div(all.columns, blocks);
    const int64_t rounds = ceil_div(all.mentions * blocks, multiprocessors);
    const int64_t time = rounds * (ceil_div(columns, most_warps) + 1);
    if (time < least) least = time, plan.columns = columns;
  }
  plan.blocks = ceil_div(all.columns, plan.columns);

  plan.pieces = ceil_div(part.width, kPiece);
  plan.stride = 2 * kPiece * plan.pieces + 16;
  plan.reciprocal = ceil_div(1 << 16, std::max(1, part.width / 8));
  plan.value = tiles * 8 * 2 * kPiece * plan.pieces;
  plan.gram = plan.value + (tiles + 1) / 2 * 16 * 2 * kPiece * plan.pieces;
  plan.norm = plan.gram + (resident ? part.mention_tokens * 4 * (w_stride(tiles) - 4) : 0);
  plan.rows = plan.norm + 2 * plan.pieces * kPiece * 4;
  plan.warp_memory = plan.rows + ceil_div(plan.columns, 4) * 16;

  const int row_groups = ceil_div(part.entity_tokens, 8), wanted = resident ? std::min(kFewWarps, plan.columns) : 1;
  for (const int most : {groups, 1}) {
    plan.stage_rows = 8 * ceil_div(row_groups, ceil_div(row_groups, most));
    plan.warp_bytes = kSlots * plan.stage_rows * plan.stride + kBatch * w_stride(tiles) * 4;
    plan.warps = std::clamp((limit - plan.warp_memory) / plan.warp_bytes, 0, std::min(most_warps, plan.columns));
    if (plan.warps >= wanted) return plan;
  }
  plan.warps = 0;
  return plan;
}

}  // namespace m3el::gpu
