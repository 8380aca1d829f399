// The schemas of the native ops: one an op, whatever the device. cpu/ops.cpp and cuda/*_ops.cpp hold the kernels,
// m3el_fast/ops/native.py and g2l_rules.py the fake tensors and the gradient; native_losses.py and
// native_cross_modal.py call those of the losses and of cross-modal contexts.
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
    // One block of products of a contrastive loss (cpu/contrastive.h): adds to peak and total, or fills out.
    "contrastive_sums(Tensor products, int first, int anchors, int batch, float other_scale, float other_weight, "
    "float same_scale, float same_weight, bool self_term, Tensor? gold, Tensor? left_out, Tensor? left_out_back, "
    "Tensor(a!) peak, Tensor(b!) total) -> ()",
    "contrastive_coefficients(Tensor products, int first, int anchors, int batch, float other_scale, "
    "float other_weight, float same_scale, float same_weight, bool self_term, Tensor? gold, Tensor? left_out, "
    "Tensor? left_out_back, Tensor lse, Tensor(a!) out) -> ()",
    // The parts of a cross-modal context (cpu/cross_modal.h).
    "cross_modal_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    "cross_modal_attend(Tensor query, Tensor local) -> Tensor",
    "cross_modal_attend_backward(Tensor gradient, Tensor query, Tensor local) -> (Tensor, Tensor)",
    "cross_modal_finish(Tensor glob, Tensor enriched, Tensor row, Tensor? mix, Tensor gate_weight, Tensor gate_bias, "
    "Tensor norm_weight, Tensor norm_bias, float eps, Tensor head_weight, float[] temperature, float lam, int tokens) "
    "-> Tensor",
    // -> of glob, enriched, row and mix [3 or 4, n, d]; of gate_weight, norm_weight, norm_bias, gate_bias [3 d + 1]
    "cross_modal_finish_backward(Tensor gradient, Tensor glob, Tensor enriched, Tensor row, Tensor? mix, "
    "Tensor gate_weight, Tensor gate_bias, Tensor norm_weight, Tensor norm_bias, float eps, Tensor head_weight, "
    "float[] temperature, float lam, int tokens) -> (Tensor, Tensor)",
    // -> scores and ids [M, k], and [1 + parts, M, k]: the coarse product and every scaled part, whose sum is the
    // score. An empty row: entity i has row i.
    "rerank_topk(Tensor mention_coarse, Tensor entity_coarse, Tensor candidates, int k, Tensor[] query, Tensor[] gate, "
    "Tensor[] row, Tensor[] key, Tensor[] centred, Tensor[] gram, Tensor[] norm_weight, Tensor[] norm_bias, "
    "float[] eps, float[] scale) -> (Tensor, Tensor, Tensor)",
};

}  // namespace m3el
