// The CPU kernels of contrastive losses and cross-modal contexts as torch ops; see ops.cpp. m3el_fast/ops/
// native_losses.py and native_cross_modal.py make losses, contexts and gradients of them.
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "contrastive_run.h"
#include "cross_modal_run.h"
#include "tensors.h"

namespace {

using m3el::check;
using m3el::data;
using m3el::ScalarType;
using m3el::Tensor;
using m3el::torch_threads;

constexpr double kLog2e = 1.4426950408889634;

void check_shape(const Tensor& t, const char* name, const std::vector<int64_t>& sizes,
                 ScalarType type = ScalarType::Float) {
  check(t, name, static_cast<int64_t>(sizes.size()), type);
  for (size_t i = 0; i < sizes.size(); ++i)
    STD_TORCH_CHECK(t.size(i) == sizes[i], name, ": expected size ", sizes[i], " in dimension ", i, ", got ",
                    t.size(i));
}

float* target(Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

m3el::ContrastiveBlock contrastive_block(const Tensor& products, int64_t first, int64_t anchors, int64_t batch,
                                         double other_scale, double other_weight, double same_scale,
                                         double same_weight, bool self_term, const std::optional<Tensor>& gold,
                                         const std::optional<Tensor>& left_out,
                                         const std::optional<Tensor>& left_out_back) {
  check(products, "products", 2, ScalarType::Float);
  const int64_t rows = products.size(0), columns = products.size(1);
  STD_TORCH_CHECK(0 < anchors && anchors <= batch && 0 <= first && 0 < rows && rows <= m3el::kContrastiveRows &&
                      first + rows <= 2 * anchors && first + columns == 2 * batch,
                  "products: expected the rows of up to ", m3el::kContrastiveRows,
                  " anchors and the columns from them on");
  if (gold.has_value()) check_shape(*gold, "gold", {2 * batch}, ScalarType::Long);
  if (left_out.has_value()) check_shape(*left_out, "left_out", {batch, batch}, ScalarType::Bool);
  if (left_out_back.has_value()) check_shape(*left_out_back, "left_out_back", {batch, batch}, ScalarType::Bool);
  const auto bias = [](double weight) { return weight > 0 ? static_cast<float>(std::log2(weight)) : -INFINITY; };
  return {data<float>(products),
          first,
          rows,
          columns,
          anchors,
          batch,
          static_cast<float>(same_scale * kLog2e),
          bias(same_weight),
          static_cast<float>(other_scale * kLog2e),
          bias(other_weight),
          self_term ? 0.0f : -INFINITY,
          data<int64_t>(gold),
          data<uint8_t>(left_out),
          data<uint8_t>(left_out_back)};
}

void contrastive_sums(const Tensor& products, int64_t first, int64_t anchors, int64_t batch, double other_scale,
                      double other_weight, double same_scale, double same_weight, bool self_term,
                      const std::optional<Tensor>& gold, const std::optional<Tensor>& left_out,
                      const std::optional<Tensor>& left_out_back, Tensor peak, Tensor total) {
  const m3el::ContrastiveBlock block =
      contrastive_block(products, first, anchors, batch, other_scale, other_weight, same_scale, same_weight, self_term,
                        gold, left_out, left_out_back);
  check_shape(peak, "peak", {2 * batch});
  check_shape(total, "total", {2 * batch});
  m3el::contrastive_sums(m3el::contrastive_kernel(m3el::isa()), block, torch_threads(), target(peak), target(total));
}

void contrastive_coefficients(const Tensor& products, int64_t first, int64_t anchors, int64_t batch,
                              double other_scale, double other_weight, double same_scale, double same_weight,
                              bool self_term, const std::optional<Tensor>& gold, const std::optional<Tensor>& left_out,
                              const std::optional<Tensor>& left_out_back, const Tensor& lse, Tensor out) {
  const m3el::ContrastiveBlock block =
      contrastive_block(products, first, anchors, batch, other_scale, other_weight, same_scale, same_weight, self_term,
                        gold, left_out, left_out_back);
  check_shape(lse, "lse", {2 * batch});
  check_shape(out, "out", {block.rows, block.columns});
  m3el::contrastive_coefficients(m3el::contrastive_kernel(m3el::isa()), block, data<float>(lse), torch_threads(),
                                 target(out));
}

m3el::CrossModalRows checked_rows(const Tensor& query, const Tensor& local) {
  const m3el::Format format = m3el::format(local, "local", 3);
  STD_TORCH_CHECK(local.size(1) > 0 && local.size(2) > 0, "local: expected tokens of at least one value");
  check_shape(query, "query", {local.size(0), local.size(2)});
  return {data<float>(query), local.const_data_ptr(), format, local.size(1), local.size(2)};
}

Tensor cross_modal_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check(x, "x", 2, ScalarType::Float);
  check(weight, "weight", 2, ScalarType::Float);
  const int64_t n = x.size(0), inner = weight.size(0), columns = weight.size(1);
  STD_TORCH_CHECK(x.size(1) == inner, "x: expected rows of ", inner, " values, got ", x.size(1));
  if (bias.has_value()) check_shape(*bias, "bias", {columns});
  Tensor out = torch::stable::new_empty(x, {n, columns});
  m3el::cross_modal_linear(m3el::cross_modal_kernel(m3el::isa()),
                           {data<float>(x), data<float>(weight), data<float>(bias), inner, columns}, n,
                           torch_threads(), target(out));
  return out;
}

Tensor cross_modal_attend(const Tensor& query, const Tensor& local) {
  const m3el::CrossModalRows rows = checked_rows(query, local);
  Tensor out = torch::stable::empty_like(query);
  m3el::cross_modal_attend(m3el::cross_modal_kernel(m3el::isa()), rows, query.size(0), torch_threads(), target(out));
  return out;
}

std::tuple<Tensor, Tensor> cross_modal_attend_backward(const Tensor& gradient, const Tensor& query,
                                                       const Tensor& local) {
  const m3el::CrossModalRows rows = checked_rows(query, local);
  check_shape(gradient, "gradient", {query.size(0), query.size(1)});
  Tensor of_query = torch::stable::empty_like(query), of_local = torch::stable::empty_like(local);
  m3el::prefer_large_pages(of_local.mutable_data_ptr(), local.numel() * (rows.format == m3el::Format::f32 ? 4 : 2));
  m3el::cross_modal_attend_backward(m3el::cross_modal_kernel(m3el::isa()), rows, data<float>(gradient), query.size(0),
                                    torch_threads(), target(of_query), of_local.mutable_data_ptr());
  return {of_query, of_local};
}

// H of two rows (spec section 5.4), of which the second stands for `tokens`; infinity is the max head.
m3el::CrossModalPool pool(const Tensor& head_weight, const std::vector<double>& temperature, double lam,
                          int64_t tokens, bool mixed) {
  const int64_t heads = static_cast<int64_t>(temperature.size());
  STD_TORCH_CHECK(1 <= heads && heads <= m3el::kMostHeads && tokens > 0, "temperature: expected 1 to ",
                  m3el::kMostHeads, " heads of at least one token");
  check_shape(head_weight, "head_weight", {heads});
  const float* weight = data<float>(head_weight);
  const double n = static_cast<double>(tokens), share = 1.0 / static_cast<double>(heads);
  double total = 0, soft = 0;
  m3el::CrossModalPool out{};
  out.log_count = static_cast<float>(std::log(n));
  for (int64_t h = 0; h < heads; ++h) {
    total += weight[h];
    const float own = static_cast<float>(lam * weight[h] * share);
    if (std::isinf(temperature[h])) {
      out.largest += own;
      continue;
    }
    soft += weight[h];
    out.temperature[out.heads] = static_cast<float>(temperature[h]);
    out.weight[out.heads++] = own;
  }
  out.enriched = static_cast<float>(share * total / (n + 1));
  out.row = static_cast<float>(mixed ? share * total * (1 + lam) : share * (total * n / (n + 1) + lam * soft));
  return out;
}

m3el::CrossModalTail tail(const Tensor& glob, const Tensor& enriched, const Tensor& row,
                          const std::optional<Tensor>& mix, const Tensor& gate_weight, const Tensor& gate_bias,
                          const Tensor& norm_weight, const Tensor& norm_bias, double eps, const Tensor& head_weight,
                          const std::vector<double>& temperature, double lam, int64_t tokens) {
  check(glob, "glob", 2, ScalarType::Float);
  const int64_t n = glob.size(0), width = glob.size(1);
  STD_TORCH_CHECK(width > 0, "glob: expected at least one value of an item");
  check_shape(enriched, "enriched", {n, width});
  check_shape(row, "row", {n, width});
  if (mix.has_value()) check_shape(*mix, "mix", {n, width});
  check_shape(gate_weight, "gate_weight", {1, width});
  check_shape(gate_bias, "gate_bias", {1});
  check_shape(norm_weight, "norm_weight", {width});
  check_shape(norm_bias, "norm_bias", {width});
  return {data<float>(glob),
          data<float>(enriched),
          data<float>(row),
          data<float>(mix),
          pool(head_weight, temperature, lam, tokens, mix.has_value()),
          data<float>(gate_weight),
          data<float>(gate_bias),
          data<float>(norm_weight),
          data<float>(norm_bias),
          static_cast<float>(eps),
          width};
}

Tensor cross_modal_finish(const Tensor& glob, const Tensor& enriched, const Tensor& row,
                          const std::optional<Tensor>& mix, const Tensor& gate_weight, const Tensor& gate_bias,
                          const Tensor& norm_weight, const Tensor& norm_bias, double eps, const Tensor& head_weight,
                          const std::vector<double>& temperature, double lam, int64_t tokens) {
  const m3el::CrossModalTail own = tail(glob, enriched, row, mix, gate_weight, gate_bias, norm_weight, norm_bias, eps,
                                        head_weight, temperature, lam, tokens);
  Tensor out = torch::stable::empty_like(glob);
  m3el::cross_modal_finish(m3el::cross_modal_kernel(m3el::isa()), own, glob.size(0), torch_threads(), target(out));
  return out;
}

std::tuple<Tensor, Tensor> cross_modal_finish_backward(
    const Tensor& gradient, const Tensor& glob, const Tensor& enriched, const Tensor& row,
    const std::optional<Tensor>& mix, const Tensor& gate_weight, const Tensor& gate_bias, const Tensor& norm_weight,
    const Tensor& norm_bias, double eps, const Tensor& head_weight, const std::vector<double>& temperature, double lam,
    int64_t tokens) {
  const m3el::CrossModalTail own = tail(glob, enriched, row, mix, gate_weight, gate_bias, norm_weight, norm_bias, eps,
                                        head_weight, temperature, lam, tokens);
  const int64_t n = glob.size(0), size = n * own.width;
  check_shape(gradient, "gradient", {n, own.width});
  Tensor items = torch::stable::new_empty(glob, {mix.has_value() ? 4 : 3, n, own.width});
  Tensor weights = torch::stable::new_empty(glob, {3 * own.width + 1});
  float* of = target(items);
  m3el::cross_modal_finish_backward(m3el::cross_modal_kernel(m3el::isa()), own, data<float>(gradient), n,
                                    torch_threads(), {of, of + size, of + 2 * size, of + 3 * size}, target(weights));
  return {items, weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(m3el_fast, CPU, m) {
  m.impl("contrastive_sums", TORCH_BOX(&contrastive_sums));
  m.impl("contrastive_coefficients", TORCH_BOX(&contrastive_coefficients));
  m.impl("cross_modal_linear", TORCH_BOX(&cross_modal_linear));
  m.impl("cross_modal_attend", TORCH_BOX(&cross_modal_attend));
  m.impl("cross_modal_attend_backward", TORCH_BOX(&cross_modal_attend_backward));
  m.impl("cross_modal_finish", TORCH_BOX(&cross_modal_finish));
  m.impl("cross_modal_finish_backward", TORCH_BOX(&cross_modal_finish_backward));
}
