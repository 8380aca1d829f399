// rerank_topk on CUDA tensors.
#include <climits>
#include <tuple>
#include <vector>

#include "binding.h"
#include "rerank.h"

namespace m3el::gpu {

namespace {

using Tensors = std::vector<Tensor>;

// Whether the tensor is bf16; fp32 is what it may be otherwise.
bool stored_bf16(const Tensor& t, const char* name, int64_t dims) {
  const bool bf16 = t.scalar_type() == ScalarType::BFloat16;
  expect(t, name, dims, bf16 ? ScalarType::BFloat16 : ScalarType::Float);
  return bf16;
}

void expect_shape(const Tensor& t, const char* name, const std::vector<int64_t>& sizes,
                  ScalarType type = ScalarType::Float) {
  expect(t, name, static_cast<int64_t>(sizes.size()), type);
  for (size_t i = 0; i < sizes.size(); ++i)
    STD_TORCH_CHECK(t.size(i) == sizes[i], name, ": expected size ", sizes[i], " in dimension ", i, ", got ",
                    t.size(i));
}

G2LPart checked_part(int64_t mentions, int64_t entities, const Tensor& query, const Tensor& gate, const Tensor& row,
                     const Tensor& key, const Tensor& centred, const Tensor& gram, const Tensor& norm_weight,
                     const Tensor& norm_bias, double eps, double scale) {
  const bool query_bf16 = stored_bf16(query, "query", 3), gate_bf16 = stored_bf16(gate, "gate", 2);
  const int64_t rows = query.size(0), entity_tokens = query.size(1), width = query.size(2);
  expect(key, "key", 3, ScalarType::BFloat16);
  const int64_t tokens = key.size(1);
  STD_TORCH_CHECK(1 <= entity_tokens && entity_tokens <= INT_MAX / kMostWidth,
                  "query: the CUDA kernel takes 1 to 2^23 - 1 tokens of an entity, got ", entity_tokens);
  STD_TORCH_CHECK(1 <= tokens && tokens <= kMostMentionTokens, "key: the CUDA kernel takes 1 to ", kMostMentionTokens,
                  " tokens of a mention, got ", tokens);
  STD_TORCH_CHECK(1 <= width && width <= kMostWidth, "query: the CUDA kernel takes 1 to ", kMostWidth,
                  " features, got ", width);
  STD_TORCH_CHECK(rows <= INT_MAX, "query: the CUDA kernel takes up to 2^31 - 1 rows, got ", rows);
  expect_shape(gate, "gate", {rows, width}, gate.scalar_type());
  expect_shape(key, "key", {mentions, tokens, width}, ScalarType::BFloat16);
  expect_shape(centred, "centred", {mentions, tokens, width});
  expect_shape(gram, "gram", {mentions, tokens, tokens});
  expect_shape(norm_weight, "norm_weight", {width});
  expect_shape(norm_bias, "norm_bias", {width});
  expect(row, "row", 1, ScalarType::Long);
  const bool own = row.numel() == 0;
  STD_TORCH_CHECK(entities == 0 || (own ? rows : row.size(0)) == entities, "row: expected the row of each of ",
                  entities, " entities");
  return {input<void>(query),         input<void>(gate),     query_bf16,
          gate_bf16,                  rows,                  own ? nullptr : input<int64_t>(row),
          input<uint16_t>(key),       input<float>(centred), input<float>(gram),
          input<float>(norm_weight),  input<float>(norm_bias),
          static_cast<int>(entity_tokens), static_cast<int>(tokens), static_cast<int>(width),
          static_cast<float>(eps),    static_cast<float>(scale)};
}

std::tuple<Tensor, Tensor, Tensor> rerank_topk(const Tensor& mention_coarse, const Tensor& entity_coarse,
                                               const Tensor& candidates, int64_t k, Tensors query, Tensors gate,
                                               Tensors row, Tensors key, Tensors centred, Tensors gram,
                                               Tensors norm_weight, Tensors norm_bias, std::vector<double> eps,
                                               std::vector<double> scale) {
  expect(mention_coarse, "mention_coarse", 2, ScalarType::Float);
  const Device device(mention_coarse);
  const bool coarse_bf16 = stored_bf16(entity_coarse, "entity_coarse", 2);
  expect(candidates, "candidates", 2, ScalarType::Long);
  const int64_t mentions = candidates.size(0), columns = candidates.size(1), entities = entity_coarse.size(0);
  expect_shape(mention_coarse, "mention_coarse", {mentions, entity_coarse.size(1)});
  STD_TORCH_CHECK(columns <= kMostCandidates, "candidates: the CUDA kernel takes up to ", kMostCandidates,
                  " of a mention, got ", columns);
  STD_TORCH_CHECK(1 <= k && k <= columns, "k: expected 1 to ", columns, ", got ", k);
  STD_TORCH_CHECK(mentions * columns <= INT_MAX, "candidates: the CUDA kernel takes up to 2^31 - 1 in all, got ",
                  mentions * columns);
  const size_t modalities = query.size();
  for (const Tensors* list : {&gate, &row, &key, &centred, &gram, &norm_weight, &norm_bias})
    STD_TORCH_CHECK(list->size() == modalities, "rerank_topk: expected as many tensors of every kind");
  STD_TORCH_CHECK(eps.size() == modalities && scale.size() == modalities,
                  "rerank_topk: expected as many eps and scales");
  const int64_t planes = 1 + static_cast<int64_t>(modalities);

  const Candidates all{input<int64_t>(candidates), entities, mentions, static_cast<int>(columns)};
  std::vector<G2LPart> parts;
  for (size_t i = 0; i < modalities; ++i)
    parts.push_back(checked_part(mentions, entities, query[i], gate[i], row[i], key[i], centred[i], gram[i],
                                 norm_weight[i], norm_bias[i], eps[i], scale[i]));
  Tensor values = torch::stable::new_empty(mention_coarse, {mentions, k});
  Tensor ids = torch::stable::new_empty(mention_coarse, {mentions, k}, ScalarType::Long);
  Tensor chosen = torch::stable::new_empty(mention_coarse, {planes, mentions, k});
  if (mentions == 0) return {values, ids, chosen};
  Tensor scores = torch::stable::new_empty(mention_coarse, {planes, mentions, columns});
  float* plane = output<float>(scores);
  if (entities > 0) {
    const Coarse coarse{input<float>(mention_coarse), input<void>(entity_coarse), coarse_bf16, entity_coarse.size(1)};
    rerank_coarse(all, coarse, plane, device.stream());
    for (size_t i = 0; i < modalities; ++i)
      rerank_g2l(all, parts[i], plane + (i + 1) * mentions * columns, device.stream());
  }
  rerank_select(all, plane, static_cast<int>(planes), static_cast<int>(k), output<float>(values),
                output<int64_t>(ids), output<float>(chosen), device.stream());
  return {values, ids, chosen};
}

}  // namespace

M3EL_GPU_OPS(m) { m.impl("rerank_topk", TORCH_BOX(&rerank_topk)); }

}  // namespace m3el::gpu
