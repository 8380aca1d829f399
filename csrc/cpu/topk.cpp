#include "topk.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <vector>

namespace m3el {

namespace {

constexpr int64_t kBlock = 64;

// Integers in the order of the values: NaN first, both zeros equal.
inline int32_t order_of(float value) {
  if (value != value) return INT_MIN;
  value += 0.0f;
  int32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits ^ ((bits >> 31) & INT_MAX);
}

struct Entry {
  int32_t order;
  int64_t id;
  float value;
};

inline bool better(const Entry& a, const Entry& b) { return a.order != b.order ? a.order > b.order : a.id < b.id; }

// `best` is a heap whose front is the worst of the k best so far.
void offer(std::vector<Entry>& best, int64_t k, const Entry& entry) {
  if (static_cast<int64_t>(best.size()) == k) {
    if (!better(entry, best.front())) return;
    std::pop_heap(best.begin(), best.end(), better);
    best.back() = entry;
  } else {
    best.push_back(entry);
  }
  std::push_heap(best.begin(), best.end(), better);
}

// Whether one of kBlock values is above `least`; NaN is not.
bool any_above(const float* values, float least) {
  int any = 0;
  for (int j = 0; j < kBlock; ++j) any |= values[j] > least;
  return any != 0;
}

void scan(const float* row, int64_t n, int64_t k, int64_t first, std::vector<Entry>& best) {
  for (int64_t j = 0; j < n;) {
    // a later column loses a tie, so only a larger value can enter a full selection
    const bool full = static_cast<int64_t>(best.size()) == k && best.front().order != INT_MIN;
    if (full)
      while (j + kBlock <= n && !any_above(row + j, best.front().value)) j += kBlock;
    for (const int64_t end = std::min(j + kBlock, n); j < end; ++j)
      if (!full || row[j] > best.front().value) offer(best, k, {order_of(row[j]), first + j, row[j]});
  }
}

}  // namespace

void topk(const float* scores, int64_t m, int64_t n, int64_t k, bool merge, int64_t first, const Parallel& parallel,
          float* values, int64_t* ids) {
  parallel.run(m, [&](int64_t begin, int64_t end) {
    std::vector<Entry> best;
    best.reserve(k);
    for (int64_t i = begin; i < end; ++i) {
      best.clear();
      if (merge)
        for (int64_t j = 0; j < k; ++j) {
          const float value = values[i * k + j];
          offer(best, k, {order_of(value), ids[i * k + j], value});
        }
      scan(scores + i * n, n, k, first, best);
      std::sort(best.begin(), best.end(), better);
      for (int64_t j = 0; j < k; ++j) {
        values[i * k + j] = best[j].value;
        ids[i * k + j] = best[j].id;
      }
    }
  });
}

}  // namespace m3el
