// Sums and coefficients of the contrastive losses.
#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "contrastive_run.h"

namespace m3el {

namespace {

// Logits of all pairs in double, both ways, as contrastive.h orders the places; `self` is the released code's 1.
struct ContrastiveCase {
  int64_t batch, anchors;
  bool gold, pairs, self;
};

void test_contrastive(const ContrastiveKernel& kernel, const char* level, const ContrastiveCase& c) {
  Random random;
  const int64_t places = 2 * c.batch, a = c.anchors;
  std::vector<float> similarity(places * places);
  for (int64_t i = 0; i < places; ++i)
    for (int64_t j = 0; j <= i; ++j)
      similarity[i * places + j] = similarity[j * places + i] = static_cast<float>(random.next());
  const auto item = [&](int64_t p) { return p < 2 * a ? p % a : a + (p - 2 * a) % (c.batch - a); };
  const auto side = [&](int64_t p) { return p < 2 * a ? p / a : (p - 2 * a) / (c.batch - a); };
  std::vector<int64_t> gold(places);
  for (int64_t p = 0; p < places; ++p) gold[p] = item(p) / 3;
  std::vector<uint8_t> out(c.batch * c.batch), back(out.size());
  for (int64_t i = 0; i < c.batch; ++i)
    for (int64_t j = 0; j < c.batch; ++j) out[i * c.batch + j] = back[j * c.batch + i] = random.next() > 0.5;
  const float same_scale = 5, same_bias = -1, other_scale = 7, other_bias = 0.5f, itself = c.self ? 0 : -INFINITY;
  const auto logit = [&](int64_t p, int64_t q) -> double {
    const bool same = side(p) == side(q);
    const double x = similarity[p * places + q];
    if (p == q) return itself;
    if (item(p) == item(q)) return other_scale * x;
    if ((c.gold && gold[p] == gold[q]) || (c.pairs && out[item(p) * c.batch + item(q)])) return -INFINITY;
    return same ? same_scale * x + same_bias : other_scale * x + other_bias;
  };
  std::vector<float> peak(places, -INFINITY), total(places), lse(places, INFINITY);
  std::vector<double> exact(places, INFINITY);
  const auto block_at = [&](int64_t first, std::vector<float>& products) {
    const int64_t rows = std::min(kContrastiveRows, 2 * a - first), columns = places - first;
    products.resize(rows * columns);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) products[i * columns + j] = similarity[(first + i) * places + first + j];
    return ContrastiveBlock{products.data(), first,      rows,       columns,
                            a,               c.batch,    same_scale, same_bias,
                            other_scale,     other_bias, itself,     c.gold ? gold.data() : nullptr,
                            c.pairs ? out.data() : nullptr, c.pairs ? back.data() : nullptr};
  };
  std::vector<float> products, found;
  for (int64_t first = 0; first < 2 * a; first += kContrastiveRows)
    contrastive_sums(kernel, block_at(first, products), three_threads(), peak.data(), total.data());
  for (int64_t p = 0; p < 2 * a; ++p) {
    double sum = 0;
    for (int64_t q = 0; q < places; ++q) sum += std::exp2(logit(p, q));
    exact[p] = std::log2(sum);
    lse[p] = peak[p] + std::log2(total[p]);
    expect(std::abs(lse[p] - exact[p]) < 1e-5, "contrastive_sums", level, lse[p] - exact[p]);
  }
  for (int64_t first = 0; first < 2 * a; first += kContrastiveRows) {
    const ContrastiveBlock block = block_at(first, products);
    found.assign(block.rows * block.columns, NAN);
    contrastive_coefficients(kernel, block, lse.data(), three_threads(), found.data());
    for (int64_t i = 0; i < block.rows; ++i)
      for (int64_t j = 0; j < block.columns; ++j) {
        const int64_t p = first + i, q = first + j;
        const bool same = side(p) == side(q);
        double expected = std::exp2(logit(p, q) - exact[p]) + std::exp2(logit(q, p) - exact[q]);
        if (!same && item(p) == item(q)) expected -= 2;
        if (p == q) expected = 0;
        expected *= std::log(2.0) * (same ? same_scale : other_scale);
        const double error = std::abs(found[i * block.columns + j] - expected);
        expect(error < 1e-4, "contrastive_coefficients", level, error);
      }
  }
}

}  // namespace

void check_contrastive(Isa isa) {
  for (const ContrastiveCase& c : {ContrastiveCase{1, 1, false, false, true}, {5, 5, true, false, false},
                                   {97, 97, false, false, true}, {97, 70, false, true, false},
                                   {83, 3, true, false, true}})
    test_contrastive(contrastive_kernel(isa), isa_name(isa), c);
}

}  // namespace m3el
