// Selection of the k largest of a row.
#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "topk.h"

namespace m3el {

namespace {

void test_topk(int64_t m, int64_t n, int64_t k) {
  Random random;
  std::vector<float> scores = random.floats(m * n);
  for (float& x : scores) x = std::round(4 * x);
  if (n > 2) scores[n / 2] = NAN;
  std::vector<float> values(m * k);
  std::vector<int64_t> ids(m * k);
  topk(scores.data(), m, n, k, false, 0, three_threads(), values.data(), ids.data());
  for (int64_t i = 0; i < m; ++i) {
    const auto key = [&](int64_t j) {
      const float x = scores[i * n + j];
      return x != x ? -1e30f : x;
    };
    std::vector<int64_t> order(n);
    for (int64_t j = 0; j < n; ++j) order[j] = j;
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return key(a) > key(b); });
    for (int64_t j = 0; j < k; ++j)
      expect(ids[i * k + j] == order[j], "topk", "scalar", static_cast<double>(ids[i * k + j]));
  }
}

}  // namespace

void check_topk() {
  for (const int64_t k : {1, 3, 70}) test_topk(4, 70, k);
  test_topk(1, 1, 1);
}

}  // namespace m3el
