"""Ranking metrics (spec section 6)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor

HITS = (1, 3, 5, 10, 20)


@dataclass(frozen=True)
class Metrics:
    """Hits@k (shares), mean reciprocal rank and mean rank over ``count`` mentions."""

    hits: dict[int, float]
    mrr: float
    mr: float
    count: int

    @classmethod
    def of(cls, ranks: Tensor) -> Metrics:
        """From ranks [M] >= 1; a rank between two places (a tie) counts for Hits@k when it is at most k.

        Raises:
            ValueError: there is no rank.
        """
        if len(ranks) == 0:
            raise ValueError("ranks: expected at least one mention whose answer is in the KB, got 0")
        ranks = ranks.double()
        hits = {k: float((ranks <= k).double().mean()) for k in HITS}
        return cls(hits, float((1 / ranks).mean()), float(ranks.mean()), len(ranks))

    def record(self) -> dict[str, object]:
        return asdict(self)


def table(rows: dict[str, Metrics]) -> str:
    """A plain-text table, one row per named result."""
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"{f'Hits@{k}':>9}" for k in HITS) + f"{'MRR':>9}{'MR':>9}"]
    for name, m in rows.items():
        cells = "".join(f"{m.hits[k]:9.4f}" for k in HITS)
        lines.append(f"{name:<{width}}{cells}{m.mrr:9.4f}{m.mr:9.1f}")
    return "\n".join(lines)
