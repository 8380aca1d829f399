"""Cross-modal contexts (spec sections 3.2 and 5.4)."""

from __future__ import annotations

from torch import Tensor

from m3el_fast.ops import gpu, native, reference, triton_cross_modal
from m3el_fast.ops.backends import Backend, choose
from m3el_fast.ops.checks import expect, shape
from m3el_fast.ops.native import needs_gradient
from m3el_fast.ops.reference import CrossModalWeights

_MOST_DIMENSIONS = 256


def cross_modal_context(
    glob: Tensor, local: Tensor, weights: CrossModalWeights, *, backend: Backend = "auto"
) -> Tensor:
    """Cross-modal context ``out`` [n, d] of one side and one direction (spec sections 3.2 and 5.4, M3EL Eq. 6-7).

    The Triton kernel takes glob and local of one dtype, fp32, bf16 or fp16, weights of any of the three, d up to 256,
    and gives gradients of all but head_weight. It works in fp32, with products of about fp32's accuracy (relative error
    2^-21) for fp32 features and of TF32's (2^-10) for others, and returns the dtype of glob.

    Args:
        glob: [n, d] projected global features; local: [n, L, d] projected local features of the other modality.
        weights: of the unit; with fusion weights, the released code's T2V-only form.
        backend: which implementation runs; ``auto`` takes Triton's on a GPU where it covers the arguments.

    Raises:
        ValueError: shapes do not match, the number of heads has no temperatures, or ``backend`` cannot serve.
    """
    n, d = shape("glob", glob, 2)
    expect("local", local, (n, shape("local", local, 3)[1], d))
    if weights.head_weight.shape[0] not in reference.HEAD_TEMPERATURES:
        raise ValueError(f"head_weight: expected 1 to 8 heads, got {weights.head_weight.shape[0]}")
    if choose(backend, glob, native.NO_KERNEL, _triton_obstacle(glob, local, weights)) == "triton":
        out: Tensor = triton_cross_modal.context(
            glob,
            local,
            weights.u_weight,
            weights.u_bias,
            weights.gate_weight,
            weights.gate_bias,
            weights.norm.weight,
            weights.norm.bias,
            weights.fusion_weight,
            weights.fusion_bias,
            weights.head_weight,
            weights.lam,
            weights.norm.eps,
        )[0]
        return out
    return reference.cross_modal_context(glob, local, weights)


def _triton_obstacle(glob: Tensor, local: Tensor, weights: CrossModalWeights) -> str | None:
    if local.numel() == 0:
        return "the kernel takes no empty tensors"
    if glob.shape[1] > _MOST_DIMENSIONS:
        return f"the kernel takes up to {_MOST_DIMENSIONS} dimensions, got {glob.shape[1]}"
    if glob.dtype != local.dtype:
        return f"the kernel takes glob and local of one dtype, got {glob.dtype} and {local.dtype}"
    if needs_gradient(weights.head_weight):
        return "the kernel has no gradient of head_weight"
    tensors = [x for x in (glob, local, *weights, *weights.norm) if isinstance(x, Tensor)]
    return gpu.not_gpu_floats(*tensors)
