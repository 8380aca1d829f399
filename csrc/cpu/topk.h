// Selection of the k largest of a row.
#pragma once

#include "parallel.h"

namespace m3el {

// values, ids [m, k]: the k largest of the rows of scores [m, n], sorted; ties to the lower id, NaN behind all numbers.
// With `merge`, values and ids hold a sorted selection made before (ids below `first`) that competes with the row;
// otherwise k <= n. The id of column j is first + j.
void topk(const float* scores, int64_t m, int64_t n, int64_t k, bool merge, int64_t first, const Parallel& parallel,
          float* values, int64_t* ids);

}  // namespace m3el
