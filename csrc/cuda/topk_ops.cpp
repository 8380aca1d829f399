// topk and topk_merge on CUDA tensors.
#include <climits>
#include <tuple>

#include "binding.h"
#include "topk.h"

namespace m3el::gpu {

namespace {

ScoreType score_type(const Tensor& scores) {
  switch (scores.scalar_type()) {
    case ScalarType::Float: return ScoreType::f32;
    case ScalarType::BFloat16: return ScoreType::bf16;
    case ScalarType::Half: return ScoreType::f16;
    default: STD_TORCH_CHECK(false, "scores: the CUDA kernel takes float32, bfloat16 and float16");
  }
}

std::tuple<Tensor, Tensor> run(const Tensor& scores, int64_t k, const Tensor* values, const Tensor* ids,
                               int64_t first) {
  const ScoreType type = score_type(scores);
  expect(scores, "scores", 2, scores.scalar_type());
  STD_TORCH_CHECK(k <= kTopkMost, "k: the CUDA kernel takes up to 2,048, got ", k);
  STD_TORCH_CHECK(scores.size(1) <= INT_MAX, "scores: the CUDA kernel takes up to 2^31 - 1 columns, got ",
                  scores.size(1));
  const Device device(scores);
  const int64_t rows = scores.size(0);
  Tensor new_values = torch::stable::new_empty(scores, {rows, k});
  Tensor new_ids = torch::stable::new_empty(scores, {rows, k}, ScalarType::Long);
  Topk topk{input<void>(scores),
            type,
            rows,
            scores.size(1),
            static_cast<int>(k),
            values ? input<void>(*values) : nullptr,
            ids ? input<int64_t>(*ids) : nullptr,
            first,
            output<void>(new_values),
            output<int64_t>(new_ids)};
  Tensor workspace = torch::stable::new_empty(scores, {topk_workspace(topk)}, ScalarType::Byte);
  launch_topk(topk, output<void>(workspace), device.stream());
  return {new_values, new_ids};
}

std::tuple<Tensor, Tensor> topk(const Tensor& scores, int64_t k) {
  const int64_t columns = scores.size(1);
  STD_TORCH_CHECK(1 <= k && k <= columns, "k: expected 1 to ", columns, ", got ", k);
  return run(scores, k, nullptr, nullptr, 0);
}

std::tuple<Tensor, Tensor> topk_merge(const Tensor& values, const Tensor& ids, const Tensor& scores, int64_t first) {
  expect(values, "values", 2, scores.scalar_type());
  expect(ids, "ids", 2, ScalarType::Long);
  const int64_t rows = scores.size(0), k = values.size(1);
  STD_TORCH_CHECK(k > 0 && values.size(0) == rows && ids.size(0) == rows && ids.size(1) == k,
                  "topk_merge: shapes do not match");
  return run(scores, k, &values, &ids, first);
}

}  // namespace

M3EL_GPU_OPS(m) {
  m.impl("topk", TORCH_BOX(&topk));
  m.impl("topk_merge", TORCH_BOX(&topk_merge));
}

}  // namespace m3el::gpu
