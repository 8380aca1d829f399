// Top-k of the rows of a score matrix on a GPU. Plain C++; topk_ops.cpp makes torch ops of it.
#pragma once

#include <cstdint>

namespace m3el::gpu {

enum class ScoreType { f32, bf16, f16 };

constexpr int kTopkMost = 2048;

// values, ids [rows, k]: the k best of the rows of scores [rows, columns], sorted; ties to the lower id, NaN behind all
// numbers, -0.0 equal to 0.0. The id of column j is first + j. Values keep their bits.
struct Topk {
  const void* scores;
  ScoreType type;
  int64_t rows, columns;   // columns < 2^31
  int k;                   // 1 to kTopkMost
  const void* old_values;  // [rows, k], or null: a sorted selection made before, which wins ties against the scores;
  const int64_t* old_ids;  //   without one, k <= columns
  int64_t first;
  void* values;
  int64_t* ids;
};

// Bytes of global memory that launch_topk needs besides, for these rows, columns and k.
int64_t topk_workspace(const Topk& topk);

// Starts the launches on `stream`. `workspace`: aligned to 16 bytes.
void launch_topk(const Topk& topk, void* workspace, void* stream);

}  // namespace m3el::gpu
