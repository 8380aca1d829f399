"""The one public face of every kernel: checks the arguments, chooses the backend, runs the op.

======================  =================================  ============================  ============================
op                      reference                          native: CPU, fp32 tensors     triton, or cuda where it
                                                                                         says so: GPU, fp32, bf16 and
                                                                                         fp16 tensors
======================  =================================  ============================  ============================
icl_loss, mclet_loss    both variants, duplicates,         the same, half precision;     the same; gradient
                        anchors                            gradient
infonce_loss            duplicates, anchors                none                          the same; gradient
g2l_scores              mean, max and soft pooling, masks  mean pooling, masks;          the same, Lm <= 1,024
                                                           gradient without rows
g2l_pairs               mean, max and soft pooling, masks  mean pooling, masks; forward  the same, Lm <= 1,024
cross_modal_context     bidirectional and T2V-only form    both, half precision;         both, d up to 256; gradient
                                                           gradient
dual_scores             yes                                forward                       gradient
inner_scores            yes                                forward                       none
inner_pairs             yes                                forward                       none
dual_pairs              yes                                forward                       none
topk, topk_merge        yes                                forward                       cuda: k <= 2,048
rerank_topk             yes                                forward                       cuda: bf16 products, C <=
                                                                                         2,048, Lm <= 128, d <= 256
                                                                                         (160 on sm_86, 89, 120)
======================  =================================  ============================  ============================

Half precision is bf16 and fp16, computed in fp32. Cross-modal contexts have a gradient of head_weight in the reference
only.

``backend="auto"`` takes CUDA's or Triton's kernel for tensors on a GPU and the native one for others where it covers
the arguments, else the reference; an explicit one is taken or refused with the reason. The CUDA kernels are a part of
the native extension that is built where nvcc is. The native kernels have the levels
scalar, avx2, avx512, avx512bf16 and amx; the environment variable M3EL_CPU_ISA forces one. With TRITON_INTERPRET=1,
set before Python starts, Triton's kernels also run on CPU tensors, slowly, where they are asked for.
"""

from m3el_fast.ops.backends import scan_precision
from m3el_fast.ops.cross_modal import cross_modal_context
from m3el_fast.ops.g2l import Precision, g2l_pairs, g2l_scores
from m3el_fast.ops.losses import icl_loss, infonce_loss, mclet_loss
from m3el_fast.ops.products import (
    dual_constants,
    dual_pairs,
    dual_scores,
    dual_source,
    dual_target,
    inner_pairs,
    inner_scores,
)
from m3el_fast.ops.reference import (
    CrossModalWeights,
    DualConstants,
    DualWeights,
    G2LOperands,
    LayerNormWeights,
)
from m3el_fast.ops.reference_losses import diagonal_cross_entropy
from m3el_fast.ops.rerank import rerank_topk
from m3el_fast.ops.selection import topk, topk_merge

__all__ = [
    "CrossModalWeights",
    "DualConstants",
    "DualWeights",
    "G2LOperands",
    "LayerNormWeights",
    "Precision",
    "cross_modal_context",
    "diagonal_cross_entropy",
    "dual_constants",
    "dual_pairs",
    "dual_scores",
    "dual_source",
    "dual_target",
    "g2l_pairs",
    "g2l_scores",
    "icl_loss",
    "infonce_loss",
    "inner_pairs",
    "inner_scores",
    "mclet_loss",
    "rerank_topk",
    "scan_precision",
    "topk",
    "topk_merge",
]
