// The two algorithms behind launch_topk, and how rows are split into parts. Plain C++.
#pragma once

#include "topk.h"

namespace m3el::gpu {

constexpr int kSmallMost = 256;  // k up to which a block has the small buffer
constexpr int kSelecting = 2, kCounting = 4;  // blocks for each multiprocessor that split rows get
constexpr int64_t kShortestPart = 16 << 10;   // splitting saves less below it than the merging launch costs

// Rows of `columns` elements, each split into `count` parts of `length` (the last one may be shorter).
struct Parts {
  int count;
  int64_t columns, length;
};

// As many parts as make `blocks` blocks for each multiprocessor; one where the rows alone do so, or are short.
Parts topk_parts(int64_t rows, int64_t columns, int blocks);

int64_t topk_block_workspace(const Topk& topk, const Parts& parts);
void topk_block(const Topk& topk, const Parts& parts, void* workspace, void* stream);

int64_t topk_radix_workspace(const Topk& topk);
void topk_radix(const Topk& topk, const Parts& parts, void* workspace, void* stream);

// The last step of both: values and ids of the k best of keys [rows, columns], of which the first counts[row] (all if
// null) are there.
void topk_of_keys(const Topk& topk, const unsigned long long* keys, int64_t columns, const unsigned* counts,
                  void* stream);

}  // namespace m3el::gpu
