// Products with weights, attention, and the finishing of cross-modal contexts, with their gradients.
#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "cross_modal_run.h"

namespace m3el {

namespace {

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

}  // namespace

void check_cross_modal(Isa isa) {
  test_linear(cross_modal_kernel(isa), isa_name(isa), 1, 1, 1);
  test_linear(cross_modal_kernel(isa), isa_name(isa), 23, 5, 131);
  for (const bool bf16 : {false, true}) {
    test_cross_modal(cross_modal_kernel(isa), isa_name(isa), 1, 1, 1, bf16, false);
    test_cross_modal(cross_modal_kernel(isa), isa_name(isa), 5, 7, 19, bf16, true);
    test_cross_modal(cross_modal_kernel(isa), isa_name(isa), 67, 3, 32, bf16, bf16);
  }
}

}  // namespace m3el
