// The CPU kernels of scores and selection as torch ops: unpacks and checks tensors, allocates results. m3el_fast/ops
// checks first and in the user's words; what is checked here keeps a direct call from reading out of bounds.
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "g2l_backward_run.h"
#include "g2l_run.h"
#include "products.h"
#include "tensors.h"
#include "topk.h"

namespace {

using m3el::check;
using m3el::data;
using m3el::format;
using m3el::ScalarType;
using m3el::Tensor;
using m3el::torch_threads;

const int64_t* checked_rows(const Tensor& rows, const char* name, int64_t limit) {
  check(rows, name, 1, ScalarType::Long);
  const int64_t* values = data<int64_t>(rows);
  for (int64_t i = 0; i < rows.size(0); ++i)
    STD_TORCH_CHECK(values[i] >= 0 && values[i] < limit, name, ": ", values[i], " is no row of ", limit);
  return values;
}

struct Operands {
  m3el::G2LEntities entities;
  m3el::G2LMentions mentions;
};

Operands g2l_operands(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gate,
                      const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                      const std::optional<Tensor>& query_mask, const std::optional<Tensor>& key_mask) {
  const m3el::Format query_format = format(query, "query", 3), gate_format = format(gate, "gate", 2);
  check(key, "key", 3, ScalarType::Float);
  check(value, "value", 3, ScalarType::Float);
  check(norm_weight, "norm_weight", 1, ScalarType::Float);
  check(norm_bias, "norm_bias", 1, ScalarType::Float);
  const int64_t entities = query.size(0), rows = query.size(1), width = query.size(2);
  const int64_t mentions = key.size(0), columns = key.size(1);
  STD_TORCH_CHECK(rows > 0 && columns > 0 && width > 0 && key.size(2) == width && value.size(0) == mentions &&
                      value.size(1) == columns && value.size(2) == width && gate.size(0) == entities &&
                      gate.size(1) == width && norm_weight.size(0) == width && norm_bias.size(0) == width,
                  "g2l: shapes do not match");
  if (query_mask.has_value()) {
    check(*query_mask, "query_mask", 2, ScalarType::Bool);
    STD_TORCH_CHECK(query_mask->size(0) == entities && query_mask->size(1) == rows, "query_mask: wrong shape");
  }
  if (key_mask.has_value()) {
    check(*key_mask, "key_mask", 2, ScalarType::Bool);
    STD_TORCH_CHECK(key_mask->size(0) == mentions && key_mask->size(1) == columns, "key_mask: wrong shape");
  }
  return {{query.const_data_ptr(), gate.const_data_ptr(), data<uint8_t>(query_mask), query_format, gate_format, rows,
           width, data<float>(norm_weight), data<float>(norm_bias), static_cast<float>(eps)},
          {data<float>(key), data<float>(value), data<uint8_t>(key_mask), mentions, columns}};
}

Tensor g2l_scores(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gate,
                  const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                  const std::optional<Tensor>& query_mask, const std::optional<Tensor>& key_mask,
                  const std::optional<Tensor>& rows, bool bf16) {
  const Operands o = g2l_operands(query, key, value, gate, norm_weight, norm_bias, eps, query_mask, key_mask);
  const int64_t* which = rows.has_value() ? checked_rows(*rows, "rows", query.size(0)) : nullptr;
  const int64_t n = rows.has_value() ? rows->size(0) : query.size(0);
  Tensor out = torch::stable::new_empty(key, {key.size(0), n});
  if (n > 0)
    m3el::g2l_scores(m3el::g2l_kernel(m3el::isa(), bf16), bf16, o.entities, which, n, o.mentions, torch_threads(),
                     static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

Tensor g2l_pairs(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gate,
                 const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                 const std::optional<Tensor>& query_mask, const std::optional<Tensor>& key_mask, const Tensor& mention,
                 const Tensor& entity, bool bf16) {
  const Operands o = g2l_operands(query, key, value, gate, norm_weight, norm_bias, eps, query_mask, key_mask);
  const int64_t* left = checked_rows(mention, "mention", key.size(0));
  const int64_t* right = checked_rows(entity, "entity", query.size(0));
  STD_TORCH_CHECK(mention.size(0) == entity.size(0), "mention and entity: expected as many of both");
  Tensor out = torch::stable::new_empty(key, {mention.size(0)});
  m3el::g2l_pairs(m3el::g2l_kernel(m3el::isa(), bf16), bf16, o.entities, o.mentions, left, right, mention.size(0),
                  torch_threads(), static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> g2l_backward(
    const Tensor& gradient, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gate,
    const Tensor& norm_weight, const Tensor& norm_bias, double eps, const std::optional<Tensor>& query_mask,
    const std::optional<Tensor>& key_mask, bool bf16) {
  const Operands o = g2l_operands(query, key, value, gate, norm_weight, norm_bias, eps, query_mask, key_mask);
  const int64_t n = query.size(0), mentions = key.size(0), width = key.size(2);
  check(gradient, "gradient", 2, ScalarType::Float);
  STD_TORCH_CHECK(n > 0 && mentions > 0 && gradient.size(0) == mentions && gradient.size(1) == n,
                  "gradient: expected one of every mention and entity");
  Tensor of_query = torch::stable::new_empty(key, {n, query.size(1), width});
  Tensor of_key = torch::stable::empty_like(key), of_value = torch::stable::empty_like(value);
  Tensor of_gate = torch::stable::new_empty(key, {n, width});
  Tensor of_weight = torch::stable::empty_like(norm_weight), of_bias = torch::stable::empty_like(norm_bias);
  const auto target = [](Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); };
  m3el::g2l_backward(m3el::g2l_backward_kernel(m3el::isa(), bf16), bf16, o.entities, n, o.mentions,
                     data<float>(gradient), torch_threads(),
                     {target(of_query), target(of_gate), target(of_key), target(of_value), target(of_weight),
                      target(of_bias)});
  return {of_query, of_key, of_value, of_gate, of_weight, of_bias};
}

const m3el::ProductsKernel& products_kernel() {
#if defined(__x86_64__)
  const m3el::Isa isa = m3el::isa();
  if (isa >= m3el::Isa::avx512) return m3el::kProductsAvx512;
  if (isa == m3el::Isa::avx2) return m3el::kProductsAvx2;
#endif
  return m3el::kProductsScalar;
}

// Rows may be slices of longer ones.
m3el::Rows checked_matrix(const Tensor& t, const char* name, int64_t width) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 2 && t.scalar_type() == ScalarType::Float && t.size(1) == width &&
                      (t.stride(1) == 1 || t.size(1) == 1),
                  name, ": expected fp32 rows of ", width, " values in a CPU tensor");
  return {data<float>(t), t.stride(0)};
}

// Blocks of b's rows that stay in cache while all of a's pass by.
constexpr int64_t kProductRows = 64;

Tensor inner_scores(const Tensor& a, const Tensor& b) {
  const int64_t width = a.size(1), m = a.size(0), n = b.size(0);
  const m3el::Rows left = checked_matrix(a, "mention", width), right = checked_matrix(b, "entity", width);
  Tensor out = torch::stable::new_empty(a, {m, n});
  float* target = static_cast<float*>(out.mutable_data_ptr());
  const m3el::ProductsKernel& kernel = products_kernel();
  if (m > 0)
    torch_threads().run(m3el::ceil_div(n, kProductRows), [&](int64_t begin, int64_t end) {
      for (int64_t j = begin * kProductRows; j < end * kProductRows && j < n; j += kProductRows)
        kernel.inner(left, m, {right.data + j * right.stride, right.stride}, std::min(kProductRows, n - j), width,
                     target + j, n);
    });
  return out;
}

Tensor inner_pairs(const Tensor& a, const Tensor& b, const Tensor& a_row, const Tensor& b_row) {
  const int64_t width = a.size(1), n = a_row.size(0);
  const m3el::Rows left = checked_matrix(a, "mention", width), right = checked_matrix(b, "entity", width);
  const int64_t* i = checked_rows(a_row, "mention_row", a.size(0));
  const int64_t* j = checked_rows(b_row, "entity_row", b.size(0));
  STD_TORCH_CHECK(b_row.size(0) == n, "rows: expected as many of both");
  Tensor out = torch::stable::new_empty(a, {n});
  float* target = static_cast<float*>(out.mutable_data_ptr());
  const m3el::ProductsKernel& kernel = products_kernel();
  torch_threads().run(n, [&](int64_t begin, int64_t end) {
    kernel.inner_pairs(left, i + begin, right, j + begin, end - begin, width, target + begin);
  });
  return out;
}

int64_t dual_width(const Tensor& source) {
  const int64_t d = (source.size(1) - 7) / 3;
  STD_TORCH_CHECK(d > 0 && source.size(1) == 3 * d + 7, "source: expected rows of 3 d + 7 values");
  return d;
}

Tensor dual_scores(const Tensor& source, const Tensor& target, const Tensor& constants) {
  const int64_t d = dual_width(source), m = source.size(0), n = target.size(0);
  const m3el::Rows left = checked_matrix(source, "source", 3 * d + 7), right = checked_matrix(target, "target", 3 * d + 7);
  check(constants, "constants", 1, ScalarType::Float);
  STD_TORCH_CHECK(constants.size(0) == 4, "constants: expected 4 values");
  const float* c = data<float>(constants);
  Tensor out = torch::stable::new_empty(source, {m, n});
  float* result = static_cast<float*>(out.mutable_data_ptr());
  const m3el::ProductsKernel& kernel = products_kernel();
  if (m > 0)
    torch_threads().run(m3el::ceil_div(n, kProductRows), [&](int64_t begin, int64_t end) {
      for (int64_t j = begin * kProductRows; j < end * kProductRows && j < n; j += kProductRows)
        kernel.dual(left, m, {right.data + j * right.stride, right.stride}, std::min(kProductRows, n - j), d,
                    {c[0], c[1], c[2], c[3]}, result + j, n);
    });
  return out;
}

Tensor dual_pairs(const Tensor& source, const Tensor& target, const Tensor& constants, const Tensor& source_row,
                  const Tensor& target_row) {
  const int64_t d = dual_width(source), n = source_row.size(0);
  const m3el::Rows left = checked_matrix(source, "source", 3 * d + 7), right = checked_matrix(target, "target", 3 * d + 7);
  check(constants, "constants", 1, ScalarType::Float);
  STD_TORCH_CHECK(constants.size(0) == 4 && target_row.size(0) == n, "dual_pairs: shapes do not match");
  const float* c = data<float>(constants);
  const int64_t* i = checked_rows(source_row, "source_row", source.size(0));
  const int64_t* j = checked_rows(target_row, "target_row", target.size(0));
  Tensor out = torch::stable::new_empty(source, {n});
  float* result = static_cast<float*>(out.mutable_data_ptr());
  const m3el::ProductsKernel& kernel = products_kernel();
  torch_threads().run(n, [&](int64_t begin, int64_t end) {
    kernel.dual_pairs(left, i + begin, right, j + begin, end - begin, d, {c[0], c[1], c[2], c[3]}, result + begin);
  });
  return out;
}

std::tuple<Tensor, Tensor> topk(const Tensor& scores, int64_t k) {
  check(scores, "scores", 2, ScalarType::Float);
  const int64_t m = scores.size(0), n = scores.size(1);
  STD_TORCH_CHECK(1 <= k && k <= n, "k: expected 1 to ", n, ", got ", k);
  Tensor values = torch::stable::new_empty(scores, {m, k});
  Tensor ids = torch::stable::new_empty(scores, {m, k}, ScalarType::Long);
  m3el::topk(data<float>(scores), m, n, k, false, 0, torch_threads(), static_cast<float*>(values.mutable_data_ptr()),
             static_cast<int64_t*>(ids.mutable_data_ptr()));
  return {values, ids};
}

std::tuple<Tensor, Tensor> topk_merge(const Tensor& values, const Tensor& ids, const Tensor& scores, int64_t first) {
  check(values, "values", 2, ScalarType::Float);
  check(ids, "ids", 2, ScalarType::Long);
  check(scores, "scores", 2, ScalarType::Float);
  const int64_t m = scores.size(0), k = values.size(1);
  STD_TORCH_CHECK(k > 0 && values.size(0) == m && ids.size(0) == m && ids.size(1) == k, "topk_merge: shapes do not match");
  Tensor new_values = torch::stable::clone(values), new_ids = torch::stable::clone(ids);
  m3el::topk(data<float>(scores), m, scores.size(1), k, true, first, torch_threads(),
             static_cast<float*>(new_values.mutable_data_ptr()), static_cast<int64_t*>(new_ids.mutable_data_ptr()));
  return {new_values, new_ids};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(m3el_fast, CPU, m) {
  m.impl("g2l_scores", TORCH_BOX(&g2l_scores));
  m.impl("g2l_pairs", TORCH_BOX(&g2l_pairs));
  m.impl("g2l_backward", TORCH_BOX(&g2l_backward));
  m.impl("inner_scores", TORCH_BOX(&inner_scores));
  m.impl("inner_pairs", TORCH_BOX(&inner_pairs));
  m.impl("dual_scores", TORCH_BOX(&dual_scores));
  m.impl("dual_pairs", TORCH_BOX(&dual_pairs));
  m.impl("topk", TORCH_BOX(&topk));
  m.impl("topk_merge", TORCH_BOX(&topk_merge));
}
