"""What ``bench/gpu_table.py`` runs: each part checks its kernel against the reference in fp64, then compares times."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from bench import oracle
from bench.cases.training import gradients, random_operands
from bench.features import DT, DV, LT, LV, SyntheticKB, SyntheticMentions, synthetic_model
from bench.gpu_measure import Call, Measured, Row, measure, measure_peer
from bench.gpu_weights import cross_weights, double, dual_weights
from bench.peers import released_g2l
from bench.roofline import limits
from bench.scales import WIKIMEL_ENTITIES, WIKIMEL_MENTIONS
from m3el_fast import ops
from m3el_fast.index import EntityIndex
from m3el_fast.matching import Side
from m3el_fast.metrics import Metrics
from m3el_fast.ops import LayerNormWeights, reference, reference_losses
from m3el_fast.scorer import Scorer

EAGER, COMPILED, PAPER = "eager", "torch.compile", "eager, the paper's form"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SASS = {"fp32": "TF32", "bf16": "BF16"}
# Relative error, Frobenius norm, of results and gradients. fp32: sums of tf32x3 products, whose relative error is about
# 2^-21, in an order of their own. bf16: operands and results rounded to 2^-9 at logits of up to 1 / 0.03.
_TOLERANCE = {"fp32": 2e-4, "bf16": 5e-2}


@dataclass(frozen=True)
class Sizes:
    """Of one ``--scale``.

    Attributes:
        entities, mentions, images: of a scan; loss_batches: of ``icl_loss``; batches: of in-batch ``g2l_scores``.
        contexts: of ``cross_modal_context`` forward; slice: mentions and entities on which the paper's form is timed.
        checked: rows that are compared with the reference.
        selections: rows, columns and k of top-k; rerank: mentions and candidates of each.
    """

    entities: int
    mentions: int
    images: int
    loss_batches: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: int
    slice: tuple[int, int]
    checked: int
    selections: tuple[tuple[int, int, int], ...]
    rerank: tuple[int, int]


SIZES = {
    "tiny": Sizes(70, 5, 66, (40,), (5,), 20, (2, 3), 5, ((7, 130, 10), (1, 3_000, 20)), (3, 11)),
    "paper": Sizes(
        WIKIMEL_ENTITIES,
        WIKIMEL_MENTIONS,
        images=67_085,
        loss_batches=(4_096, 32_768),
        batches=(128, 1_024),
        contexts=109_976,
        slice=(64, 1_000),
        checked=96,
        selections=((4_096, WIKIMEL_ENTITIES, 10), (512, 131_072, 100), (1, 10_000_000, 100)),
        rerank=(1_024, 1_000),
    ),
}

Part = Callable[[Sizes, str], Iterator[Row]]


def icl_loss(sizes: Sizes, device: str) -> Iterator[Row]:
    """Forward and backward of the contrastive loss, against the [B, B] matrices of the reference."""
    ours = partial(ops.icl_loss, backend="triton")
    exact = partial(reference_losses.icl_loss, tau=0.03, beta=0.8, gamma=1.0, variant="paper")
    for batch in sizes.loss_batches:
        for name, dtype in _DTYPES.items():
            g = torch.Generator().manual_seed(batch)
            mention = torch.randn(batch, DT, generator=g)
            # a loss far from 0, where 1 - softmax would cancel in fp32 in any implementation
            entity = 0.1 * mention + torch.randn(batch, DT, generator=g)
            rows = [entity.to(device, dtype), mention.to(device, dtype)]
            error = _checked(ours, exact, [t[: 3 * sizes.checked] for t in rows], name)
            error = max(error, _within(ours(*rows), _icl_in_blocks(*(t.double() for t in rows)), name, "loss"))
            peers = {EAGER: _step(exact, rows)}
            if batch == max(sizes.loss_batches):
                peers[COMPILED] = _compiled(lambda f, rows=rows: _step(f, rows), exact)
            # forward: E M, half of E E and of M M; backward: these again and twice as much for the gradients
            flop, exponentials = 16.0 * batch**2 * DT, 4.0 * batch**2
            stored = 4.0 * batch * DT * rows[0].element_size()
            yield timed_row(
                f"icl_loss forward + backward, B = {batch:,}, d = {DT}, {name}",
                error,
                _step(ours, rows),
                peers,
                device,
                items=batch,
                unit="pairs",
                limit=max(limits(exponentials, flop, stored, _SASS[name]).values()),
                goals={f"x {EAGER}": 2.0, f"memory x {EAGER}": 20.0} if batch == 32_768 else {},
            )


def _icl_in_blocks(entity: Tensor, mention: Tensor, block: int = 1_024) -> Tensor:
    """The loss as the reference defines it, a block of rows at a time."""
    sides = [torch.nn.functional.normalize(t, dim=1) for t in (entity, mention)]
    total = entity.new_zeros(())
    for same, other in (sides, sides[::-1]):
        for start in range(0, len(entity), block):
            part = same[start : start + block]
            across, along = part @ other.T / 0.03, part @ same.T / 0.03 + math.log(0.8)
            along[:, start:].fill_diagonal_(-math.inf)
            positive = across[:, start:].diagonal()
            total = total + (torch.cat([across, along], dim=1).logsumexp(dim=1) - positive).sum()
    return total / (2 * len(entity))


def g2l_training(sizes: Sizes, device: str) -> Iterator[Row]:
    """Forward and backward of in-batch ``g2l_scores``."""
    for batch in sizes.batches:
        for modality, length in (("text", LT), ("image", LV)):
            for name, dtype in _DTYPES.items():
                operands = [t.to(device, dtype) for t in random_operands(batch, length)]
                few = [t[: sizes.checked] if t.dim() > 1 else t for t in operands]
                upstream = torch.randn(batch, batch, generator=torch.Generator().manual_seed(7)).to(device, dtype)
                error = _checked(_scores("triton"), _scores("reference"), few, name)
                error = max(error, _g2l_gradients_checked(operands, upstream, name))
                logits = float(batch * batch * length * length)
                peers = {PAPER: partial(gradients, _with_norm(released_g2l), operands, upstream)}
                if batch == max(sizes.batches):
                    peers[COMPILED] = _compiled(
                        lambda f, o=operands, u=upstream: partial(gradients, _with_norm(f), o, u), reference.g2l_scores
                    )
                yield timed_row(
                    f"g2l_scores forward + backward, {modality}, B = {batch:,}, {name}",
                    error,
                    partial(gradients, _scores("triton"), operands, upstream),
                    peers,
                    device,
                    items=batch * batch,
                    unit="pairs",
                    # Q K^T twice, dQ and dK; exponentials in both passes
                    limit=max(limits(2 * logits, 8 * logits * DV, 0.0, _SASS[name]).values()),
                    goals={f"x {PAPER}": 5.0, f"memory x {PAPER}": 20.0} if batch == 1_024 else {},
                )


def _g2l_gradients_checked(operands: list[Tensor], upstream: Tensor, dtype: str) -> float:
    """Error of the gradients of a few entities and of a few mentions, each against everything on the other side."""
    found = gradients(_scores("triton"), operands, upstream)
    query, key, value, gate, weight, bias = (t.double() for t in operands)
    few = torch.tensor([0, len(query) // 2, len(query) - 1], device=query.device)
    exact = _scores("reference")
    entity = gradients(exact, [query[few], key, value, gate[few], weight, bias], upstream[:, few].double())
    mention = gradients(exact, [query, key[few], value[few], gate, weight, bias], upstream[few].double())
    pairs = ((0, entity), (3, entity), (1, mention), (2, mention))
    return max(_within(found[i][few], expected[i], dtype, f"gradient {i}") for i, expected in pairs)


def g2l_scan(sizes: Sizes, device: str) -> Iterator[Row]:
    """Scores of all mentions and all entities (or distinct images) by the kernel alone, bf16 products as in a scan."""
    for modality, length, entities in (("text", LT, sizes.entities), ("image", LV, sizes.images)):
        g = torch.Generator(device).manual_seed(length)

        def normal(*shape: int, g: torch.Generator = g) -> Tensor:
            return torch.randn(*shape, generator=g, device=device)

        query, gate = normal(entities, length, DV).bfloat16(), 0.58 * normal(entities, DV)
        key, value = 1.5 * normal(sizes.mentions, length, DV), normal(sizes.mentions, length, DV)
        norm = LayerNormWeights(1 + 0.1 * normal(DV), 0.1 * normal(DV))
        call = partial(ops.g2l_scores, query, key, value, gate, norm, precision="bf16", backend="triton")
        m = torch.linspace(0, sizes.mentions - 1, min(sizes.mentions, 17)).long()
        e = torch.linspace(0, entities - 1, min(entities, sizes.checked)).long()
        with torch.no_grad():
            found = call()[m.to(device)][:, e.to(device)]
            exact = reference.g2l_scores(
                *(t.double() for t in (query[e], key[m], value[m], gate[e])),
                LayerNormWeights(norm.weight.double(), norm.bias.double()),
            )
            error = _within(found, exact, "bf16", "scores")
            few_m, few_e = min(sizes.slice[0], sizes.mentions), min(sizes.slice[1], entities)
            few = query[:few_e].float(), key[:few_m], value[:few_m], gate[:few_e]
            pairs, logits = sizes.mentions * entities, length * length
            stored = query.numel() * 2.0 + 4.0 * (key.numel() + value.numel() + pairs)
            yield timed_row(
                f"g2l_scores, {modality}, {sizes.mentions:,} x {entities:,}, bf16 products",
                error,
                call,
                {
                    PAPER: lambda few=few, norm=norm: released_g2l(*few, norm),
                    COMPILED: _compiled(lambda f, few=few, norm=norm: partial(f, *few, norm), reference.g2l_scores),
                },
                device,
                items=pairs,
                peer_items=few_m * few_e,
                unit="pairs",
                limit=max(limits(float(pairs * logits), 2.0 * pairs * (logits + length) * DV, stored, "BF16").values()),
            )


def scan(sizes: Sizes, device: str) -> Iterator[Row]:
    """Ranks of all golds against the whole KB through the Scorer."""
    with torch.inference_mode():
        model = synthetic_model("m3el")
        index = EntityIndex.build(model, SyntheticKB(sizes.entities), progress=False)
        source, rows = SyntheticMentions(sizes.entities), torch.arange(sizes.mentions)
        gold = source.gold(rows)
        mentions, few = model.mention_side(source.inputs(rows)), slice(0, 2)
        scores = oracle.all_scores(model.matcher, mentions.take(few), index)
        mentions = _moved(mentions, device)
        scorer = Scorer(model, index, device=device)
        ranks = scorer.ranks(mentions, gold)["union"]
        oracle.check_ranks(ranks[few], gold[few], scores)
        metrics = Metrics.of(ranks)
        pairs = sizes.mentions * sizes.entities
        text = limits(float(pairs * LT**2), 2.0 * pairs * LT**2 * DV, 0.0, "BF16")
        images = sizes.mentions * sizes.images
        image = limits(float(images * LV**2), 2.0 * images * LV**2 * DV, 0.0, "BF16")
        yield timed_row(
            f"ranks of {sizes.mentions:,} mentions among {sizes.entities:,} entities, M3EL, through the Scorer",
            None,
            lambda: scorer.ranks(mentions, gold),
            {},
            device,
            items=pairs,
            unit="pairs",
            limit=max(text.values()) + max(image.values()),
            goals={"seconds": 3.0} if sizes.mentions == WIKIMEL_MENTIONS else {},
            facts={"hits@1": metrics.hits[1], "settled": scorer.stats.settled, "repeats": scorer.stats.repeats},
        )


def cross_modal(sizes: Sizes, device: str) -> Iterator[Row]:
    """Contexts of a whole KB, and forward + backward of a batch."""
    for fused in (False, True):
        weights = cross_weights(device, fused)
        form = "T2V-only form" if fused else "bidirectional form"
        g = torch.Generator(device).manual_seed(3)
        glob = torch.randn(sizes.contexts, DV, generator=g, device=device)
        local = torch.randn(sizes.contexts, LV, DV, generator=g, device=device)
        few = [glob[: sizes.checked], local[: sizes.checked]]
        error = _checked(
            lambda g, x, w=weights: ops.cross_modal_context(g, x, w, backend="triton"),
            lambda g, x, w=weights: reference.cross_modal_context(g, x, double(w)),
            few,
            "fp32",
        )
        paper, closed = reference.cross_modal_context_paper, reference.cross_modal_context
        stored = 4.0 * (local.numel() + 2 * glob.numel())
        flop = 2.0 * sizes.contexts * DV * ((5 if fused else 3) * DV + 2 * LV)
        with torch.no_grad():
            yield timed_row(
                f"cross_modal_context of {sizes.contexts:,}, {form}, fp32",
                error,
                partial(ops.cross_modal_context, glob, local, weights, backend="triton"),
                {
                    PAPER: partial(paper, glob, local, weights),
                    EAGER: partial(closed, glob, local, weights),
                    COMPILED: _compiled(lambda f, a=(glob, local, weights): partial(f, *a), closed),
                },
                device,
                items=sizes.contexts,
                unit="contexts",
                limit=max(limits(0.0, flop, stored, "TF32").values()),
            )
        batch = [t[: max(sizes.batches)] for t in (glob, local)]
        yield timed_row(
            f"cross_modal_context forward + backward of {len(batch[0]):,}, {form}, fp32",
            error,
            _step(lambda g, x, w=weights: ops.cross_modal_context(g, x, w, backend="triton").sum(), batch),
            {EAGER: _step(lambda g, x, w=weights: reference.cross_modal_context(g, x, w).sum(), batch)},
            device,
            items=len(batch[0]),
            unit="contexts",
        )


def dual(sizes: Sizes, device: str) -> Iterator[Row]:
    """MIMIC's dual-gated scores of all mentions and all distinct images, and forward + backward of a batch."""
    weights = dual_weights(device)
    g = torch.Generator(device).manual_seed(4)
    a = torch.randn(sizes.mentions, DV, generator=g, device=device)
    k, v = (torch.randn(sizes.images, DV, generator=g, device=device) for _ in range(2))
    source, target = ops.dual_source(a, weights), ops.dual_target(k, v, weights)
    constants = ops.dual_constants(weights)
    exact_constants = constants._replace(gate=constants.gate.double(), bias=constants.bias.double())
    error = _checked(
        lambda s, t: ops.dual_scores(s, t, constants, backend="triton"),
        lambda s, t: reference.dual_scores(s, t, exact_constants),
        [source[: sizes.checked], target[: sizes.checked]],
        "fp32",
    )
    few_m, few_e = min(sizes.slice[0], sizes.mentions), min(sizes.slice[1], sizes.images)
    pairs = sizes.mentions * sizes.images
    with torch.no_grad():
        own = measure(lambda: ops.dual_scores(source, target, constants, backend="triton"), device)
        whole = {
            EAGER: lambda: reference.dual_scores(source, target, constants),
            COMPILED: _compiled(lambda f: partial(f, source, target, constants), reference.dual_scores),
        }
        limit = max(limits(0.0, 10.0 * DV * pairs, 4.0 * (source.numel() + target.numel() + pairs), "TF32").values())
        name = f"dual_scores, {sizes.mentions:,} x {sizes.images:,}, fp32"
        yield Row(name, error, own, pairs, "pairs", _peers(whole, device), pairs, limit)
        slice_ = partial(reference.dual_scores_paper, a[:few_m], k[:few_e], v[:few_e], weights)
        yield Row(f"{name}, a slice", error, own, pairs, "pairs", _peers({PAPER: slice_}, device), few_m * few_e, limit)
    batch = [source[: max(sizes.batches)], target[: max(sizes.batches)]]
    yield timed_row(
        f"dual_scores forward + backward, B = {max(sizes.batches):,}, fp32",
        error,
        _step(lambda s, t: ops.dual_scores(s, t, constants, backend="triton").sum(), batch),
        {EAGER: _step(lambda s, t: reference.dual_scores(s, t, constants).sum(), batch)},
        device,
        items=len(batch[0]) * len(batch[1]),
        unit="pairs",
    )


# ----------------------------------------------------------------------------------------------------------------------


def _moved(side: Side, device: str) -> Side:
    assert side.image_index is not None
    item, visual = ({name: t.to(device) for name, t in tensors.items()} for tensors in (side.item, side.visual))
    return Side(item, visual, side.image_index.to(device))


def timed_row(
    name: str,
    error: float | None,
    own: Call,
    peers: dict[str, Call],
    device: str,
    *,
    items: int,
    unit: str,
    peer_items: int | None = None,
    limit: float | None = None,
    goals: dict[str, float] | None = None,
    facts: dict[str, object] | None = None,
) -> Row:
    """Time a call and its peers."""
    measured = measure(own, device)
    others = _peers(peers, device)
    return Row(name, error, measured, items, unit, others, peer_items or items, limit, goals or {}, facts or {})


def _peers(peers: dict[str, Call], device: str) -> dict[str, Measured]:
    """On the CPU compiled peers are left out: they would test torch's compiler."""
    return {name: measure_peer(call, device) for name, call in peers.items() if device == "cuda" or name != COMPILED}


def _compiled(use: Callable[[Callable[..., Tensor]], Call], function: Callable[..., Tensor]) -> Call:
    """The call that ``use`` makes of ``function``, compiled for these shapes when it first runs."""
    torch._dynamo.reset()
    return use(torch.compile(function, dynamic=False))


def _step(loss: Callable[..., Tensor], rows: list[Tensor]) -> Call:
    """Forward and backward of a scalar of ``rows``."""

    def run() -> None:
        leaves = [t.detach().requires_grad_() for t in rows]
        torch.autograd.grad(loss(*leaves), leaves)

    return run


def _checked(ours: Callable[..., Tensor], exact: Callable[..., Tensor], operands: list[Tensor], dtype: str) -> float:
    """Largest relative error of result and gradients against ``exact`` in fp64, asserted to be within tolerance."""
    found, expected = _results(ours, operands), _results(exact, [t.double() for t in operands])
    return max(_within(x, y, dtype, f"tensor {i}") for i, (x, y) in enumerate(zip(found, expected, strict=True)))


def _results(function: Callable[..., Tensor], operands: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in operands]
    result = function(*leaves)
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(11)).to(result)
    return [result.detach(), *torch.autograd.grad(result, leaves, upstream)]


def _within(found: Tensor, exact: Tensor, dtype: str, what: str) -> float:
    error = float((found.double() - exact).norm() / exact.norm())
    assert error <= _TOLERANCE[dtype], f"{what}: relative error {error:.2e} against the reference, {dtype}"
    return error


def _scores(backend: Literal["triton", "reference"]) -> Callable[..., Tensor]:
    def run(*operands: Tensor) -> Tensor:
        *tensors, weight, bias = operands
        precision = "bf16" if weight.dtype == torch.bfloat16 else "fp32"
        norm = LayerNormWeights(weight, bias)
        return ops.g2l_scores(*tensors, norm, precision=precision, backend=backend)

    return run


def _with_norm(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *operands: function(*operands[:-2], LayerNormWeights(*operands[-2:]))


PARTS: dict[str, Part] = {
    "icl_loss": icl_loss,
    "g2l_training": g2l_training,
    "g2l_scan": g2l_scan,
    "scan": scan,
    "cross_modal": cross_modal,
    "dual": dual,
}
