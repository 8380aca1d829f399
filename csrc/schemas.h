// The schemas of the native ops: one an op, whatever the device. cpu/ops.cpp and cuda/*_ops.cpp hold the kernels,
// m3el_fast/ops/native.py and g2l_rules.py the fake tensors and the gradient.
#pragma once

namespace m3el {

constexpr const char* kSchemas[] = {
    "g2l_scores(Tensor query, Tensor key, Tensor value, Tensor gate, Tensor norm_weight, Tensor norm_bias, float eps, "
    "Tensor? query_mask, Tensor? key_mask, Tensor? rows, bool bf16) -> Tensor",
    "g2l_pairs(Tensor query, Tensor key, Tensor value, Tensor gate, Tensor norm_weight, Tensor norm_bias, float eps, "
    "Tensor? query_mask, Tensor? key_mask, Tensor mention, Tensor entity, bool bf16) -> Tensor",
    "g2l_backward(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor gate, Tensor norm_weight, "
    "Tensor norm_bias, float eps, Tensor? query_mask, Tensor? key_mask, bool bf16) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "inner_scores(Tensor mention, Tensor entity) -> Tensor",
    "inner_pairs(Tensor mention, Tensor entity, Tensor mention_row, Tensor entity_row) -> Tensor",
    "dual_scores(Tensor source, Tensor target, Tensor constants) -> Tensor",
    "dual_pairs(Tensor source, Tensor target, Tensor constants, Tensor source_row, Tensor target_row) -> Tensor",
    "topk(Tensor scores, int k) -> (Tensor, Tensor)",
    "topk_merge(Tensor values, Tensor ids, Tensor scores, int first) -> (Tensor, Tensor)",
    // -> scores and ids [M, k], and [1 + parts, M, k]: the coarse product and every scaled part, whose sum is the
    // score. An empty row: entity i has row i.
    "rerank_topk(Tensor mention_coarse, Tensor entity_coarse, Tensor candidates, int k, Tensor[] query, Tensor[] gate, "
    "Tensor[] row, Tensor[] key, Tensor[] centred, Tensor[] gram, Tensor[] norm_weight, Tensor[] norm_bias, "
    "float[] eps, float[] scale) -> (Tensor, Tensor, Tensor)",
};

}  // namespace m3el
