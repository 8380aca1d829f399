"""The native extension as a backend: whether it is there, for which tensors, and its ops' fake tensors.

The extension is loaded when this module is; ``MISSING`` says why that failed, and is empty where it worked.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from m3el_fast.ops.build import native_report

MISSING = native_report().missing

NO_KERNEL = "this op has no native kernel"

_FAST_BF16 = (3, 4)  # avx512bf16 and amx, of cpu_isa()


def scan_precision() -> Literal["fp32", "bf16"]:
    """The precision of products in which this machine scores fastest: bf16 where it has instructions for it.

    Raises:
        RuntimeError: the environment variable M3EL_CPU_ISA names no level of this machine.
    """
    return "bf16" if not MISSING and torch.ops.m3el_fast.cpu_isa() in _FAST_BF16 else "fp32"


def not_cpu_fp32(*tensors: Tensor) -> str | None:
    """The obstacle that one of ``tensors`` is no CPU tensor of fp32, or None."""
    if any(t.device.type != "cpu" for t in tensors):
        return "the kernel takes no tensors outside the CPU"
    if any(t.dtype != torch.float32 for t in tensors):
        return "the kernel takes no other dtype than fp32 here"
    return None


def not_cpu_floats(*tensors: Tensor) -> str | None:
    """The obstacle that one of ``tensors`` is no CPU tensor of fp32, bf16 or fp16, or None."""
    if any(t.device.type != "cpu" for t in tensors):
        return "the kernel takes no tensors outside the CPU"
    wrong = next((t for t in tensors if t.dtype not in (torch.float32, torch.bfloat16, torch.float16)), None)
    return None if wrong is None else f"the kernel takes fp32, bf16 and fp16, got {wrong.dtype}"


def needs_gradient(*tensors: Tensor) -> str | None:
    """The obstacle that a gradient is wanted, or None."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return "the kernel has no gradient"
    return None


if not MISSING:

    @torch.library.register_fake("m3el_fast::inner_scores")
    def _(mention: Tensor, entity: Tensor) -> Tensor:
        return mention.new_empty(mention.shape[0], entity.shape[0])

    @torch.library.register_fake("m3el_fast::inner_pairs")
    def _(mention: Tensor, entity: Tensor, mention_row: Tensor, entity_row: Tensor) -> Tensor:
        return mention.new_empty(mention_row.shape[0])

    @torch.library.register_fake("m3el_fast::dual_scores")
    def _(source: Tensor, target: Tensor, constants: Tensor) -> Tensor:
        return source.new_empty(source.shape[0], target.shape[0])

    @torch.library.register_fake("m3el_fast::dual_pairs")
    def _(source: Tensor, target: Tensor, constants: Tensor, source_row: Tensor, target_row: Tensor) -> Tensor:
        return source.new_empty(source_row.shape[0])

    @torch.library.register_fake("m3el_fast::topk")
    def _(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        shape = (scores.shape[0], k)
        return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)

    @torch.library.register_fake("m3el_fast::topk_merge")
    def _(values: Tensor, ids: Tensor, scores: Tensor, first: int) -> tuple[Tensor, Tensor]:
        return torch.empty_like(values), torch.empty_like(ids)

    @torch.library.register_fake("m3el_fast::rerank_topk")
    def _(
        mention_coarse: Tensor, entity_coarse: Tensor, candidates: Tensor, k: int, query: list[Tensor], *others: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = (candidates.shape[0], k)
        planes = mention_coarse.new_empty((1 + len(query), *shape))
        return mention_coarse.new_empty(shape), candidates.new_empty(shape), planes

    @torch.library.register_fake("m3el_fast::contrastive_sums")
    @torch.library.register_fake("m3el_fast::contrastive_coefficients")
    def _(*_: Any) -> None:
        """They write into what they are given."""

    @torch.library.register_fake("m3el_fast::cross_modal_linear")
    def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return x.new_empty(x.shape[0], weight.shape[1])

    @torch.library.register_fake("m3el_fast::cross_modal_attend")
    def _(query: Tensor, local: Tensor) -> Tensor:
        return torch.empty_like(query)

    @torch.library.register_fake("m3el_fast::cross_modal_attend_backward")
    def _(gradient: Tensor, query: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty_like(query), torch.empty_like(local)

    @torch.library.register_fake("m3el_fast::cross_modal_finish")
    def _(glob: Tensor, *others: Any) -> Tensor:
        return torch.empty_like(glob)

    @torch.library.register_fake("m3el_fast::cross_modal_finish_backward")
    def _(
        gradient: Tensor, glob: Tensor, enriched: Tensor, row: Tensor, mix: Tensor | None, *others: Any
    ) -> tuple[Tensor, Tensor]:
        n, d = glob.shape
        return glob.new_empty(3 if mix is None else 4, n, d), glob.new_empty(3 * d + 1)
