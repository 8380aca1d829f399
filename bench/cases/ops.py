"""Single ops at the paper's token counts, and the same in PyTorch: as the papers write it, and by spec section 5."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.cases.forms import Computation, Forms, assert_near
from bench.cases.training import random_operands
from bench.features import DT, DV, LT, LV
from bench.gpu_weights import cross_weights, double, dual_weights
from bench.peers import released_g2l, released_icl
from m3el_fast import ops
from m3el_fast.ops import CrossModalWeights, LayerNormWeights, reference, reference_losses

PAPER, SECTION5, COMPILED = "eager, the paper's form", "eager, section 5", "torch.compile of section 5"
MATMUL, OURS = "torch.matmul", "ours"

COARSE = DT + 3 * DV  # of the inner products that M3EL's coarse score needs: text, image, T2V, V2T
_COMPILING = 60  # seconds that torch.compile gets
_CHECKED = 8  # rows on either side that are compared with the reference
_FP32, _BF16 = 1e-4, 2e-2  # relative errors: of fp32 sums; of operands rounded to 2^-9
_CHUNKS = (20, 10, 40, 100)  # entities whose pair tensors with all mentions are held at a time


class _Pairs(Computation):
    """Scores [M, E] of ``mentions`` x ``entities``, checked at the first few on either side."""

    chunks: dict[str, tuple[int, ...]]
    exact: Tensor
    bounds: ClassVar[dict[str, float]] = {}

    def check(self, form: str, result: Tensor) -> None:
        rows, columns = self.exact.shape
        assert_near(result[:rows, :columns], self.exact, self.bounds.get(form, _FP32))


class G2LScores(_Pairs):
    """Text's global-to-local scores; peers on ``slice_entities`` only."""

    FORMS = (PAPER, SECTION5, COMPILED, "fp32", "bf16")
    bounds: ClassVar[dict[str, float]] = {"bf16": _BF16}

    def __init__(self, mentions: int, entities: int, slice_entities: int) -> None:
        query, key, value, gate, *weights = random_operands(max(mentions, entities), LT)
        self.operands = operands = query[:entities], key[:mentions], value[:mentions], gate[:entities]
        norm = LayerNormWeights(*weights)
        few_queries, few_gates = query[:slice_entities], gate[:slice_entities]

        def in_chunks(scores: Callable[..., Tensor], size: int) -> Tensor:
            parts = zip(few_queries.split(size), few_gates.split(size), strict=True)
            return torch.cat([scores(q, *operands[1:3], g, norm) for q, g in parts], dim=1)

        self.forms = {
            PAPER: partial(in_chunks, released_g2l),
            SECTION5: partial(in_chunks, reference.g2l_scores),
            COMPILED: partial(in_chunks, partial(_compiled, reference.g2l_scores), _CHUNKS[0]),  # one compilation
            "fp32": partial(ops.g2l_scores, *operands, norm),
            "bf16": partial(ops.g2l_scores, *operands, norm, precision="bf16"),
        }
        self.items = dict.fromkeys(self.FORMS, mentions * entities)
        self.items |= dict.fromkeys((PAPER, SECTION5, COMPILED), mentions * len(few_queries))
        self.chunks = dict.fromkeys((PAPER, SECTION5), _CHUNKS)
        few = [t[:_CHECKED].double() for t in operands]
        self.exact = reference.g2l_scores(*few, LayerNormWeights(*(t.double() for t in weights)))


class DualScores(_Pairs):
    """MIMIC's dual-gated scores of one direction; the paper's form on ``slice_entities`` only."""

    FORMS = (PAPER, SECTION5, COMPILED, OURS)

    def __init__(self, mentions: int, entities: int, slice_entities: int) -> None:
        g = torch.Generator().manual_seed(4)
        a, k, v = (torch.randn(rows, DV, generator=g) for rows in (mentions, entities, entities))
        weights = dual_weights("cpu")
        source, target = ops.dual_source(a, weights), ops.dual_target(k, v, weights)
        constants = ops.dual_constants(weights)
        few_k, few_v = k[:slice_entities], v[:slice_entities]

        def paper(size: int) -> Tensor:
            parts = zip(few_k.split(size), few_v.split(size), strict=True)
            return torch.cat([reference.dual_scores_paper(a, *part, weights) for part in parts], dim=1)

        self.forms = {
            PAPER: paper,
            SECTION5: partial(reference.dual_scores, source, target, constants),
            COMPILED: partial(_compiled, reference.dual_scores, source, target, constants),
            OURS: partial(ops.dual_scores, source, target, constants),
        }
        self.items = dict.fromkeys(self.FORMS, mentions * entities) | {PAPER: mentions * len(few_k)}
        self.chunks = {PAPER: _CHUNKS}
        norms = {name: _widened(getattr(weights, name)) for name in ("norm1", "norm2")}
        tensors = {name: t.double() for name, t in weights._asdict().items() if isinstance(t, Tensor)}
        few = (t[:_CHECKED].double() for t in (a, few_k, few_v))
        self.exact = reference.dual_scores_paper(*few, weights._replace(**norms, **tensors))


class InnerScores(_Pairs):
    """All of M3EL's coarse score in one product."""

    FORMS = (MATMUL, OURS)

    def __init__(self, mentions: int, entities: int) -> None:
        g = torch.Generator().manual_seed(8)
        mention, entity = (torch.randn(rows, COARSE, generator=g) for rows in (mentions, entities))
        self.forms = {MATMUL: lambda: mention @ entity.T, OURS: partial(ops.inner_scores, mention, entity)}
        self.items, self.chunks = dict.fromkeys(self.FORMS, mentions * entities), {}
        self.exact = mention[:_CHECKED].double() @ entity[:_CHECKED].double().T


class ICLLoss(Computation):
    """Forward and backward of the contrastive loss in the released variant."""

    FORMS = (PAPER, COMPILED, OURS)
    unit = "anchors"

    def __init__(self, batch: int) -> None:
        g = torch.Generator().manual_seed(batch)
        mention = torch.randn(batch, DT, generator=g)
        rows = [0.1 * mention + torch.randn(batch, DT, generator=g), mention]
        exact = partial(reference_losses.icl_loss, tau=0.03, beta=0.8, gamma=1.0, variant="released")
        self.forms = {
            PAPER: partial(_with_gradient, partial(released_icl, tau=0.03, beta=0.8, gamma=1.0), rows),
            COMPILED: partial(_with_gradient, partial(_compiled, exact), rows),
            OURS: partial(_with_gradient, partial(ops.icl_loss, variant="released"), rows),
        }
        self.items, self.chunks = dict.fromkeys(self.FORMS, batch), {}
        self.exact = _with_gradient(exact, [t.double() for t in rows])

    def check(self, form: str, result: list[Tensor]) -> None:
        for found, exact in zip(result, self.exact, strict=True):
            assert_near(found, exact, _FP32)


class CrossModalContext(Computation):
    """Contexts of ``contexts`` items in the bidirectional form."""

    FORMS = (PAPER, SECTION5, COMPILED, OURS)
    unit = "contexts"

    def __init__(self, contexts: int) -> None:
        g = torch.Generator().manual_seed(3)
        glob, local = torch.randn(contexts, DV, generator=g), torch.randn(contexts, LV, DV, generator=g)
        weights = cross_weights("cpu", fused=False)

        def paper(size: int) -> Tensor:
            parts = zip(glob.split(size), local.split(size), strict=True)
            return torch.cat([reference.cross_modal_context_paper(*part, weights) for part in parts])

        self.forms = {
            PAPER: paper,
            SECTION5: partial(reference.cross_modal_context, glob, local, weights),
            COMPILED: partial(_compiled, reference.cross_modal_context, glob, local, weights),
            OURS: partial(ops.cross_modal_context, glob, local, weights),
        }
        self.items, self.chunks = dict.fromkeys(self.FORMS, contexts), {PAPER: (64, 256, 1024)}
        few = glob[:_CHECKED].double(), local[:_CHECKED].double()
        self.exact = reference.cross_modal_context_paper(*few, double(weights))

    def check(self, form: str, result: Tensor) -> None:
        assert_near(result[:_CHECKED], self.exact, _FP32)


class CrossModalGradients(Computation):
    """Forward and backward of ``contexts`` items: gradients of both features and of the unit's weights."""

    FORMS = (PAPER, SECTION5, COMPILED, OURS)
    unit = "contexts"

    def __init__(self, contexts: int) -> None:
        g = torch.Generator().manual_seed(5)
        weights = cross_weights("cpu", fused=False)
        norm, heads = weights.norm, weights.head_weight
        layers = (weights.u_weight, weights.u_bias, weights.gate_weight, weights.gate_bias, norm.weight, norm.bias)
        tensors = [torch.randn(contexts, DV, generator=g), torch.randn(contexts, LV, DV, generator=g), *layers]
        upstream = torch.randn(contexts, DV, generator=g)

        def step(context: Callable[..., Tensor], glob: Tensor, local: Tensor, *layers: Tensor) -> Tensor:
            own = LayerNormWeights(*layers[4:])
            unit = CrossModalWeights(*layers[:4], own, heads.to(glob.dtype), weights.lam)
            return (context(glob, local, unit) * upstream.to(glob.dtype)).sum()

        section5 = partial(step, reference.cross_modal_context)
        self.forms = {
            PAPER: partial(_with_gradient, partial(step, reference.cross_modal_context_paper), tensors),
            SECTION5: partial(_with_gradient, section5, tensors),
            COMPILED: partial(_with_gradient, partial(_compiled, section5), tensors),
            OURS: partial(_with_gradient, partial(step, ops.cross_modal_context), tensors),
        }
        self.items, self.chunks = dict.fromkeys(self.FORMS, contexts), {}
        self.exact = _with_gradient(section5, [t.double() for t in tensors])

    def check(self, form: str, result: list[Tensor]) -> None:
        for found, exact in zip(result, self.exact, strict=True):
            assert_near(found, exact, _FP32)


class Ops(Forms):
    """The ops that have no benchmark of their own in a larger setting, and those that have, alone."""

    COMPUTATIONS: ClassVar[dict[str, type[Computation]]] = {
        "icl_loss forward + backward": ICLLoss,
        "icl_loss forward + backward, a training batch": ICLLoss,
        "g2l_scores, text": G2LScores,
        "cross_modal_context": CrossModalContext,
        "cross_modal_context forward + backward": CrossModalGradients,
        "dual_scores": DualScores,
        "inner_scores": InnerScores,
    }

    def verify_compiled(self, name: str) -> dict[str, Any]:
        """As ``verify`` of the compiled form; where it cannot be compiled in a minute, ``skip`` with the reason."""
        torch._dynamo.reset()
        signal.signal(signal.SIGALRM, _too_slow)
        signal.setitimer(signal.ITIMER_REAL, _COMPILING, 1)  # again each second: the compiler swallows some errors
        try:
            return self.verify(name, COMPILED)
        except (RuntimeError, TimeoutError) as error:  # torch's errors of a compiler are RuntimeErrors
            return {"skip": f"torch.compile: {str(error).splitlines()[0]}"}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _compiled(function: Callable[..., Tensor], *args: Any) -> Tensor:
    return _compile(function)(*args)


@cache
def _compile(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compiled for the shapes of each call; apart, so that processes without the form do not load the compiler."""
    return torch.compile(function, dynamic=False)


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"more than {_COMPILING} s")


def _with_gradient(loss: Callable[..., Tensor], rows: list[Tensor]) -> list[Tensor]:
    """A scalar loss of ``rows`` and its gradients."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in rows]
        value = loss(*leaves)
        return [value.detach(), *torch.autograd.grad(value, leaves)]


def _widened(norm: LayerNormWeights) -> LayerNormWeights:
    return LayerNormWeights(norm.weight.double(), norm.bias.double(), norm.eps)
