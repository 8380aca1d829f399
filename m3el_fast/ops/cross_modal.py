"""Cross-modal contexts (spec sections 3.2 and 5.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from m3el_fast.ops import gpu, native, native_cross_modal, reference, triton_cross_modal
from m3el_fast.ops.backends import Backend, choose
from m3el_fast.ops.checks import expect, shape
from m3el_fast.ops.reference import CrossModalWeights

_MOST_DIMENSIONS = 256
_FEW = 8  # items of the T2V-only form: the calls around fewer take longer than what the native kernels save


def cross_modal_context(
    glob: Tensor, local: Tensor, weights: CrossModalWeights, *, backend: Backend = "auto"
) -> Tensor:
    """Cross-modal context ``out`` [n, d] of one side and one direction (spec sections 3.2 and 5.4, M3EL Eq. 6-7).

    The kernels take glob and local of one dtype, fp32, bf16 or fp16, and weights of any of the three, give gradients of
    all but head_weight, work in fp32 and return the dtype of glob. Triton's takes d up to 256; its products are of
    about fp32's accuracy (relative error 2^-21) for fp32 features and of TF32's (2^-10) for others.

    Args:
        glob: [n, d] projected global features; local: [n, L, d] projected local features of the other modality.
        weights: of the unit; with fusion weights, the released code's T2V-only form.
        backend: which implementation runs; ``auto`` takes Triton's on a GPU and the native one on a CPU, where they
            cover the arguments, or the reference for fewer than 8 fp32 items of the T2V-only form, where it takes less
            time.

    Raises:
        ValueError: shapes do not match, the number of heads has no temperatures, or ``backend`` cannot serve.
    """
    n, d = shape("glob", glob, 2)
    expect("local", local, (n, shape("local", local, 3)[1], d))
    if weights.head_weight.shape[0] not in reference.HEAD_TEMPERATURES:
        raise ValueError(f"head_weight: expected 1 to 8 heads, got {weights.head_weight.shape[0]}")
    if backend == "auto" and _are_few(glob, local, weights):
        return reference.cross_modal_context(glob, local, weights)
    chosen = choose(backend, glob, _native_obstacle(glob, local, weights), _triton_obstacle(glob, local, weights))
    if chosen == "reference":
        return reference.cross_modal_context(glob, local, weights)
    layers = (
        weights.u_weight,
        weights.u_bias,
        weights.gate_weight,
        weights.gate_bias,
        weights.norm.weight,
        weights.norm.bias,
        weights.fusion_weight,
        weights.fusion_bias,
        weights.head_weight,
    )
    if chosen == "triton":
        out: Tensor = triton_cross_modal.context(glob, local, *layers, weights.lam, weights.norm.eps)[0]
        return out
    read = local if local.dtype == torch.bfloat16 else local.float()
    wide = [None if x is None else x.float().contiguous() for x in layers]
    rows = glob.float().contiguous(), read.contiguous()
    found: Tensor = native_cross_modal.context(*rows, *wide, weights.lam, weights.norm.eps)[0]
    return found.to(glob.dtype)


def _native_obstacle(glob: Tensor, local: Tensor, weights: CrossModalWeights) -> str | None:
    return _obstacle(glob, local, weights) or native.not_cpu_floats(*_tensors(glob, local, weights))


def _are_few(glob: Tensor, local: Tensor, weights: CrossModalWeights) -> bool:
    """Whether the reference is as exact as the native kernels and takes less time."""
    few = weights.fusion_weight is not None and glob.shape[0] < _FEW and not torch.is_autocast_enabled("cpu")
    return few and native.not_cpu_fp32(*_tensors(glob, local, weights)) is None


def _triton_obstacle(glob: Tensor, local: Tensor, weights: CrossModalWeights) -> str | None:
    if glob.shape[1] > _MOST_DIMENSIONS:
        return f"the kernel takes up to {_MOST_DIMENSIONS} dimensions, got {glob.shape[1]}"
    return _obstacle(glob, local, weights) or gpu.not_gpu_floats(*_tensors(glob, local, weights))


def _obstacle(glob: Tensor, local: Tensor, weights: CrossModalWeights) -> str | None:
    """What no kernel covers."""
    if local.numel() == 0:
        return "the kernel takes no empty tensors"
    if glob.dtype != local.dtype:
        return f"the kernel takes glob and local of one dtype, got {glob.dtype} and {local.dtype}"
    if native.needs_gradient(weights.head_weight):
        return "the kernel has no gradient of head_weight"
    return None


def _tensors(glob: Tensor, local: Tensor, weights: CrossModalWeights) -> list[Tensor]:
    return [x for x in (glob, local, *weights, *weights.norm) if isinstance(x, Tensor)]
