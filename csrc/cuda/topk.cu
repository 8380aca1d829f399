// The rule that chooses between block selection (topk_block.cu) and radix selection (topk_radix.cu).
#include "topk.h"

#include <algorithm>

#include "platform.h"
#include "topk_forms.h"

namespace m3el::gpu {

namespace {

// Block selection, except for rows that are split and a large k: then k candidates from every part would be more to
// merge than a second look at the row costs.
bool by_radix(const Topk& topk, const Parts& parts) { return parts.count > 1 && topk.k > kSmallMost; }

}  // namespace

Parts topk_parts(int64_t rows, int64_t columns, int blocks) {
  const int64_t wanted = int64_t{blocks} * multiprocessors() / std::max<int64_t>(rows, 1);
  const int64_t count = std::max<int64_t>(1, std::min(wanted, columns / kShortestPart));
  constexpr int64_t kStep = 8;  // parts begin where vectors of the row do
  const int64_t length = ((columns + count - 1) / count + kStep - 1) / kStep * kStep;
  return {static_cast<int>(count), columns, length};
}

int64_t topk_workspace(const Topk& t) {
  const Parts parts = topk_parts(t.rows, t.columns, kSelecting);
  return by_radix(t, parts) ? topk_radix_workspace(t) : topk_block_workspace(t, parts);
}

void launch_topk(const Topk& t, void* workspace, void* stream) {
  if (t.rows == 0) return;
  const Parts parts = topk_parts(t.rows, t.columns, kSelecting);
  if (by_radix(t, parts))
    topk_radix(t, topk_parts(t.rows, t.columns, kCounting), workspace, stream);
  else
    topk_block(t, parts, workspace, stream);
}

}  // namespace m3el::gpu
