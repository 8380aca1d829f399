// Global-to-local scores of all and of chosen pairs, and their gradients.
#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "g2l_backward_run.h"
#include "g2l_run.h"

namespace m3el {

namespace {

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

const std::vector<G2LCase> kCases = {{1, 1, 1, 1, 1, false},   {17, 7, 5, 11, 13, true}, {33, 6, 4, 65, 7, false},
                                     {16, 5, 3, 5, 32, false}, {19, 9, 17, 50, 96, true}, {3, 40, 2, 40, 96, false}};

}  // namespace

void check_g2l(Isa isa) {
  for (const G2LCase& c : kCases)
    for (const bool bf16 : {false, true}) {
      test_g2l(g2l_kernel(isa, bf16), isa_name(isa), bf16, c);
      test_g2l_backward(g2l_backward_kernel(isa, bf16), isa_name(isa), bf16, c);
    }
}

void check_g2l_amx() {
  for (const G2LCase& c : kCases) test_g2l(kG2LAmx, "amx (emulated tiles)", true, c);
}

}  // namespace m3el
