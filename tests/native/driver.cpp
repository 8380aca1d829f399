// Runs every CPU kernel of every ISA level that this machine has, and the AMX kernel on emulated tiles, against plain
// double arithmetic. Built with address and undefined-behaviour sanitizers by .ci/sanitize.py; every buffer is as large
// as its contents. Exits with 1 and a line for each mismatch.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "contrastive_run.h"
#include "cross_modal_run.h"
#include "g2l_backward_run.h"
#include "g2l_run.h"
#include "products.h"
#include "topk.h"

namespace {

using namespace m3el;

int failures = 0;

void expect(bool good, const char* what, const char* level, double error) {
  if (good) return;
  ++failures;
  std::printf("%s at level %s: error %g\n", what, level, error);
}

struct Random {
  uint64_t state = 1;
  double next() {  // uniform in [-1, 1)
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state >> 40) / (1 << 23) - 1;
  }
  std::vector<float> floats(int64_t n) {
    std::vector<float> out(n);
    for (float& x : out) x = static_cast<float>(2 * next());
    return out;
  }
};

// 3 threads whatever the count, so that ranges of odd sizes and idle threads occur.
Parallel three_threads() {
  return {3, [](int64_t count, const auto& body) {
            std::vector<std::thread> threads;
            for (int64_t t = 0; t < 3; ++t) {
              const int64_t begin = count * t / 3, end = count * (t + 1) / 3;
              if (begin < end) threads.emplace_back([&body, begin, end] { body(begin, end); });
            }
            for (std::thread& thread : threads) thread.join();
          }};
}

uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float from_bf16(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

struct G2LCase {
  int64_t e, le, m, lm, d;
  bool masked;
};

struct G2LData {
  std::vector<float> query, gate, key, value, weight, bias;
  std::vector<uint16_t> query16, gate16;
  std::vector<uint8_t> query_mask, key_mask;
  std::vector<double> expected;

  explicit G2LData(const G2LCase& c) {
    Random random;
    query = random.floats(c.e * c.le * c.d);
    gate = random.floats(c.e * c.d);
    key = random.floats(c.m * c.lm * c.d);
    value = random.floats(c.m * c.lm * c.d);
    weight = random.floats(c.d);
    bias = random.floats(c.d);
    for (float& x : query) query16.push_back(to_bf16(x)), x = from_bf16(query16.back());
    for (float& x : gate) gate16.push_back(to_bf16(x)), x = from_bf16(gate16.back());
    if (c.masked) {
      for (int64_t i = 0; i < c.e * c.le; ++i) query_mask.push_back(i % c.le == 0 || random.next() > 0);
      for (int64_t i = 0; i < c.m * c.lm; ++i) key_mask.push_back(i % c.lm == 0 || random.next() > 0);
    }
    for (int64_t m = 0; m < c.m; ++m)
      for (int64_t e = 0; e < c.e; ++e) expected.push_back(score(c, m, e));
  }

  double score(const G2LCase& c, int64_t m, int64_t e) const {
    std::vector<double> context(c.d), weights(c.lm);
    double tokens = 0;
    for (int64_t t = 0; t < c.le; ++t) {
      if (c.masked && !query_mask[e * c.le + t]) continue;
      tokens += 1;
      double sum = 0;
      for (int64_t k = 0; k < c.lm; ++k) {
        double logit = 0;
        for (int64_t i = 0; i < c.d; ++i)
          logit += double{query[(e * c.le + t) * c.d + i]} * key[(m * c.lm + k) * c.d + i];
        const bool kept = !c.masked || key_mask[m * c.lm + k];
        sum += weights[k] = kept ? std::exp(logit / std::sqrt(double(c.d))) : 0;
      }
      for (int64_t k = 0; k < c.lm; ++k)
        for (int64_t i = 0; i < c.d; ++i) context[i] += weights[k] / sum * value[(m * c.lm + k) * c.d + i];
    }
    double mean = 0, variance = 0, out = 0;
    for (double& x : context) mean += (x /= tokens) / static_cast<double>(c.d);
    for (const double x : context) variance += (x - mean) * (x - mean) / static_cast<double>(c.d);
    for (int64_t i = 0; i < c.d; ++i)
      out += gate[e * c.d + i] * ((context[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + bias[i]);
    return out;
  }
};

void test_g2l(const G2LKernel& kernel, const char* level, bool bf16, const G2LCase& c) {
  const G2LData data(c);
  const G2LMentions mentions{data.key.data(), data.value.data(), c.masked ? data.key_mask.data() : nullptr, c.m, c.lm};
  const Parallel parallel = three_threads();
  // bf16 products err by 2^-8 of their terms; an error in the kernel is larger than a few percent of the spread
  const double tolerance = bf16 ? 0.15 * std::sqrt(double(c.d)) : 2e-3;
  for (const bool stored16 : {false, true}) {
    const Format format = stored16 ? Format::bf16 : Format::f32;
    const void* query = stored16 ? static_cast<const void*>(data.query16.data()) : data.query.data();
    const void* gate = stored16 ? static_cast<const void*>(data.gate16.data()) : data.gate.data();
    const uint8_t* mask = c.masked ? data.query_mask.data() : nullptr;
    const G2LEntities entities{query, gate, mask, format, format, c.le, c.d, data.weight.data(), data.bias.data(), 1e-5f};
    std::vector<float> found(c.m * c.e, NAN);
    g2l_scores(kernel, bf16, entities, nullptr, c.e, mentions, parallel, found.data());
    double error = 0;
    for (int64_t i = 0; i < c.m * c.e; ++i) error = std::max(error, std::abs(found[i] - data.expected[i]));
    expect(error <= tolerance, "g2l_scores", level, error);
    std::vector<int64_t> mention, entity;
    for (int64_t i = 0; i < 3 * c.e + 1; ++i) mention.push_back(i / 5 % c.m), entity.push_back(i * 7 % c.e);
    std::vector<float> pairs(mention.size(), NAN);
    g2l_pairs(kernel, bf16, entities, mentions, mention.data(), entity.data(), static_cast<int64_t>(mention.size()),
              parallel, pairs.data());
    for (std::size_t i = 0; i < mention.size(); ++i)
      expect(pairs[i] == found[mention[i] * c.e + entity[i]], "g2l_pairs", level, pairs[i]);
  }
}

// The gradients against the difference of the scores between two points around the operands.
void test_g2l_backward(const G2LBackwardKernel& kernel, const char* level, bool bf16, const G2LCase& c) {
  const G2LData data(c);
  G2LData up = data, down = data;
  Random random;
  const auto part = [](G2LData& d, int i) -> std::vector<float>& {
    return *std::vector{&d.query, &d.gate, &d.key, &d.value, &d.weight, &d.bias}[i];
  };
  std::vector<std::vector<float>> found;
  for (int i = 0; i < 6; ++i) {
    found.emplace_back(part(up, i).size(), NAN);
    for (std::size_t j = 0; j < found[i].size(); ++j) {
      const float step = static_cast<float>(5e-4 * random.next());
      part(up, i)[j] += step;
      part(down, i)[j] -= step;
    }
  }
  const std::vector<float> upstream = random.floats(c.m * c.e);
  const uint8_t* query_mask = c.masked ? data.query_mask.data() : nullptr;
  const uint8_t* key_mask = c.masked ? data.key_mask.data() : nullptr;
  const G2LEntities entities{data.query.data(), data.gate.data(), query_mask, Format::f32, Format::f32, c.le, c.d,
                             data.weight.data(), data.bias.data(), 1e-5f};
  const G2LMentions mentions{data.key.data(), data.value.data(), key_mask, c.m, c.lm};
  g2l_backward(kernel, bf16, entities, c.e, mentions, upstream.data(), three_threads(),
               {found[0].data(), found[1].data(), found[2].data(), found[3].data(), found[4].data(), found[5].data()});
  double expected = 0, product = 0, size = 1e-6;
  for (int64_t m = 0; m < c.m; ++m)
    for (int64_t e = 0; e < c.e; ++e) expected += upstream[m * c.e + e] * (up.score(c, m, e) - down.score(c, m, e));
  for (int i = 0; i < 6; ++i)
    for (std::size_t j = 0; j < found[i].size(); ++j) {
      const double term = found[i][j] * (double{part(up, i)[j]} - part(down, i)[j]);
      product += term;
      size += term * term;
    }
  const double error = std::abs(product - expected) / std::sqrt(size);
  expect(error <= (bf16 ? 1e-2 : 1e-5), "g2l_backward", level, error);
}

void test_products(const ProductsKernel& kernel, const char* level, int64_t m, int64_t n, int64_t d) {
  Random random;
  const std::vector<float> a = random.floats(m * (3 * d + 7)), b = random.floats(n * (3 * d + 7));
  const Rows left{a.data(), 3 * d + 7}, right{b.data(), 3 * d + 7};
  std::vector<float> found(m * n, NAN), one(1), dual(m * n, NAN);
  kernel.inner(left, m, right, n, 3 * d + 7, found.data(), n);
  const DualConstants constants{0.1f, 30.0f, 1e-5f, 1e-5f};
  kernel.dual(left, m, right, n, d, constants, dual.data(), n);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double expected = 0;
      for (int64_t k = 0; k < 3 * d + 7; ++k) expected += double{a[i * left.stride + k]} * b[j * right.stride + k];
      const double error = std::abs(found[i * n + j] - expected);
      expect(error < 1e-3, "inner", level, error);
      kernel.inner_pairs(left, &i, right, &j, 1, 3 * d + 7, one.data());
      expect(one[0] == found[i * n + j], "inner_pairs", level, one[0]);
      kernel.dual_pairs(left, &i, right, &j, 1, d, constants, one.data());
      expect(std::isfinite(one[0]) && one[0] == dual[i * n + j], "dual_pairs", level, one[0]);
    }
}

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

void test_linear(const CrossModalKernel& kernel, const char* level, int64_t n, int64_t inner, int64_t columns) {
  Random random;
  const std::vector<float> x = random.floats(n * inner), weight = random.floats(inner * columns);
  const std::vector<float> bias = random.floats(columns);
  std::vector<float> found(n * columns, NAN);
  for (const float* own : {bias.data(), static_cast<const float*>(nullptr)}) {
    cross_modal_linear(kernel, {x.data(), weight.data(), own, inner, columns}, n, three_threads(), found.data());
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        double expected = own ? own[j] : 0;
        for (int64_t k = 0; k < inner; ++k) expected += double{x[i * inner + k]} * weight[k * columns + j];
        const double error = std::abs(found[i * columns + j] - expected);
        expect(error < 1e-4, "cross_modal_linear", level, error);
      }
  }
}

// Values against double arithmetic, and gradients against differences of those.
void test_cross_modal(const CrossModalKernel& kernel, const char* level, int64_t n, int64_t tokens, int64_t d,
                      bool bf16, bool mixed) {
  Random random;
  std::vector<float> query = random.floats(n * d), local = random.floats(n * tokens * d);
  const std::vector<float> upstream = random.floats(n * d);
  std::vector<uint16_t> half(local.size());
  for (size_t i = 0; i < local.size(); ++i) half[i] = to_bf16(local[i]);
  if (bf16)
    for (size_t i = 0; i < local.size(); ++i) local[i] = from_bf16(half[i]);
  const CrossModalRows rows{query.data(), bf16 ? static_cast<const void*>(half.data()) : local.data(),
                            bf16 ? Format::bf16 : Format::f32, tokens, d};
  std::vector<float> context(n * d, NAN), of_query(n * d, NAN), of_local(local.size(), NAN);
  std::vector<uint16_t> of_half(local.size());
  cross_modal_attend(kernel, rows, n, three_threads(), context.data());
  cross_modal_attend_backward(kernel, rows, upstream.data(), n, three_threads(), of_query.data(),
                              bf16 ? static_cast<void*>(of_half.data()) : of_local.data());
  for (int64_t i = 0; i < n; ++i) {
    std::vector<double> weight(tokens), along(tokens);
    double peak = -1e30, sum = 0, mean = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t c = 0; c < d; ++c) {
        const double x = local[(i * tokens + t) * d + c];
        weight[t] += x * query[i * d + c];
        along[t] += x * upstream[i * d + c];
      }
      peak = std::max(peak, weight[t]);
    }
    for (double& w : weight) sum += w = std::exp(w - peak);
    for (int64_t t = 0; t < tokens; ++t) mean += (weight[t] /= sum) * along[t];
    for (int64_t c = 0; c < d; ++c) {
      double value = 0, slope = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t at = (i * tokens + t) * d + c;
        const double by_logit = weight[t] * (along[t] - mean);
        value += weight[t] * local[at];
        slope += by_logit * local[at];
        const double expected = weight[t] * upstream[i * d + c] + by_logit * query[i * d + c];
        const double error = std::abs((bf16 ? from_bf16(of_half[at]) : of_local[at]) - expected);
        expect(error <= (bf16 ? 4e-3 : 1e-4) * (1 + std::abs(expected)), "gradient of local", level, error);
      }
      const double error = std::abs(context[i * d + c] - value), other = std::abs(of_query[i * d + c] - slope);
      expect(error < 1e-4, "cross_modal_attend", level, error);
      expect(other < 1e-3 * (1 + std::abs(slope)), "gradient of query", level, other);
    }
  }
  std::vector<float> glob = random.floats(n * d), enriched = random.floats(n * d), row = random.floats(n * d);
  std::vector<float> mix = random.floats(n * d), gate = random.floats(d), bias = random.floats(1);
  const std::vector<float> norm = random.floats(d), norm_bias = random.floats(d);
  const CrossModalPool pool{0.2f, 0.9f, 0.3f, 1.5f, 2, {2, 3.5f}, {0.4f, -0.3f}};
  const CrossModalTail tail{glob.data(), enriched.data(), row.data(), mixed ? mix.data() : nullptr, pool,
                            gate.data(), bias.data(),     norm.data(), norm_bias.data(), 1e-2f, d};
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  const auto loss = [&] {  // the outputs times upstream
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
      double dot = bias[0], mean = 0, variance = 0;
      std::vector<double> x(d);
      for (int64_t c = 0; c < d; ++c) dot += double{glob[i * d + c]} * gate[c];
      for (int64_t c = 0; c < d; ++c) {
        const double a = std::max(0.0f, enriched[i * d + c]), r = std::max(0.0f, row[i * d + c]);
        const double f = sigmoid(mix[i * d + c]);
        double h = pool.enriched * a + pool.row * r + pool.largest * std::max(a, r);
        for (int k = 0; k < 2; ++k)
          h += pool.weight[k] * (a - r) * sigmoid(pool.temperature[k] * (a - r) - pool.log_count);
        if (mixed) h = f * a + (1 - f) * pool.row * r;
        mean += (x[c] = glob[i * d + c] * std::tanh(dot) + h) / static_cast<double>(d);
      }
      for (double y : x) variance += (y - mean) * (y - mean) / static_cast<double>(d);
      for (int64_t c = 0; c < d; ++c)
        total += upstream[i * d + c] * ((x[c] - mean) / std::sqrt(variance + 1e-2) * norm[c] + norm_bias[c]);
    }
    return total;
  };
  std::vector<float> out(n * d, NAN), items(4 * n * d, NAN), weights(3 * d + 1, NAN);
  cross_modal_finish(kernel, tail, n, three_threads(), out.data());
  double found = 0;
  for (int64_t i = 0; i < n * d; ++i) found += double{out[i]} * upstream[i];
  const double expected = loss(), room = 1e-4 * static_cast<double>(n * d);
  expect(std::abs(found - expected) < room, "cross_modal_finish", level, found - expected);
  float* of = items.data();
  cross_modal_finish_backward(kernel, tail, upstream.data(), n, three_threads(),
                              {of, of + n * d, of + 2 * n * d, mixed ? of + 3 * n * d : nullptr}, weights.data());
  const auto check_one = [&](float& value, float gradient, const char* what) {
    const float before = value, step = 1e-3f;
    value = before + step;
    const double up = loss();
    value = before - step;
    const double slope = (up - loss()) / (2 * step);
    value = before;
    const double error = std::abs(slope - gradient);
    expect(error < 2e-2 * (1 + std::abs(slope)), what, level, error);
  };
  for (int64_t i = 0; i < n * d; i += 7) {
    check_one(glob[i], of[i], "gradient of glob");
    if (std::abs(enriched[i] - row[i]) < 2e-3f) continue;  // next to the corner of the largest
    if (std::abs(enriched[i]) > 2e-3f) check_one(enriched[i], of[n * d + i], "gradient of enriched");
    if (std::abs(row[i]) > 2e-3f) check_one(row[i], of[2 * n * d + i], "gradient of row");
    if (mixed) check_one(mix[i], of[3 * n * d + i], "gradient of mix");
  }
  for (int64_t c = 0; c < d; ++c) check_one(gate[c], weights[c], "gradient of gate_weight");
  check_one(bias[0], weights[3 * d], "gradient of gate_bias");
}

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

int main() {
  const std::vector<G2LCase> cases = {{1, 1, 1, 1, 1, false},   {17, 7, 5, 11, 13, true}, {33, 6, 4, 65, 7, false},
                                      {16, 5, 3, 5, 32, false}, {19, 9, 17, 50, 96, true}, {3, 40, 2, 40, 96, false}};
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
    if (!has_isa(isa)) {
      std::printf("this machine has no %s\n", isa_name(isa));
      continue;
    }
    for (const G2LCase& c : cases)
      for (const bool bf16 : {false, true}) {
        test_g2l(g2l_kernel(isa, bf16), isa_name(isa), bf16, c);
        test_g2l_backward(g2l_backward_kernel(isa, bf16), isa_name(isa), bf16, c);
      }
    const ProductsKernel& products = isa >= Isa::avx512   ? kProductsAvx512
                                     : isa == Isa::avx2 ? kProductsAvx2
                                                        : kProductsScalar;
    for (const ContrastiveCase& c : {ContrastiveCase{1, 1, false, false, true}, {5, 5, true, false, false},
                                     {97, 97, false, false, true}, {97, 70, false, true, false},
                                     {83, 3, true, false, true}})
      test_contrastive(contrastive_kernel(isa), isa_name(isa), c);
    test_linear(cross_modal_kernel(isa), isa_name(isa), 1, 1, 1);
    test_linear(cross_modal_kernel(isa), isa_name(isa), 23, 5, 131);
    for (const bool bf16 : {false, true}) {
      test_cross_modal(cross_modal_kernel(isa), isa_name(isa), 1, 1, 1, bf16, false);
      test_cross_modal(cross_modal_kernel(isa), isa_name(isa), 5, 7, 19, bf16, true);
      test_cross_modal(cross_modal_kernel(isa), isa_name(isa), 67, 3, 32, bf16, bf16);
    }
    for (const int64_t d : {1, 7, 32}) test_products(products, isa_name(isa), 5, 67, d);
    test_products(products, isa_name(isa), 1, 1, 3);
  }
  if (has_isa(Isa::avx512))
    for (const G2LCase& c : cases) test_g2l(kG2LAmx, "amx (emulated tiles)", true, c);
  for (const int64_t k : {1, 3, 70}) test_topk(4, 70, k);
  test_topk(1, 1, 1);
  std::printf(failures ? "%d mismatches\n" : "all kernels agree\n", failures);
  return failures != 0;
}
