"""Figures as HTML and inline SVG, styled by the page's style sheet: no library, no request, any width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from m3el_fast.calibration_metrics import CalibrationMetrics
from m3el_fast.report.contents import COMPONENTS, Group

_SIZE, _LEFT, _BOTTOM, _EDGE = 360, 46, 44, 12  # of the reliability figure's viewBox, and around its square


def histogram(counts: Sequence[tuple[str, int]]) -> str:
    """Horizontal bars, one a row of a table, with counts and shares."""
    total, most = sum(count for _, count in counts), max(count for _, count in counts)
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td class="track">{_bar(count / max(1, most))}</td>'
        f'<td class="n">{count:,}</td><td class="n soft">{count / max(1, total):.1%}</td></tr>'
        for label, count in counts
    )
    return (
        '<table class="bars"><thead><tr><th scope="col">rank</th><td></td><th scope="col" class="n">mentions</th>'
        f'<th scope="col" class="n">share</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def groups(title: str, found: Sequence[Group]) -> str:
    """A row for each group of mentions: how many, Hits@1 as a bar, MRR."""
    rows = "".join(_group(group) for group in found)
    return (
        f'<table class="bars"><thead><tr><th scope="col">{escape(title)}</th><th scope="col">Hits@1</th><td></td>'
        f'<th scope="col" class="n">MRR</th><th scope="col" class="n">mentions</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _group(group: Group) -> str:
    head = f'<tr><th scope="row">{escape(group.label)}</th>'
    if group.metrics is None:
        return f'{head}<td class="track"></td><td class="n soft">none</td><td></td><td class="n">0</td></tr>'
    hits, mrr, count = group.metrics.hits[1], group.metrics.mrr, group.metrics.count
    return (
        f'{head}<td class="track"><div>{_bar(hits)}</div></td><td class="n">{hits:.1%}</td><td class="n">{mrr:.4f}</td>'
        f'<td class="n">{count:,}</td></tr>'
    )


def _bar(share: float) -> str:
    return f'<i style="width:{100 * share:.2f}%"></i>' if share > 0 else ""


def reliability(trust: CalibrationMetrics) -> str:
    """Share that is right against confidence, a mark for each bin; on the diagonal probabilities are what they say."""
    marks = [(place(one.confidence), one) for one in trust.bins]
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        at, up = place(tick), rise(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{rise(0):.1f}" y2="{rise(1):.1f}"/>')
        parts.append(f'<line class="grid" x1="{place(0):.1f}" x2="{place(1):.1f}" y1="{up:.1f}" y2="{up:.1f}"/>')
        parts.append(_text(at, rise(0) + 18, "middle", f"{tick:g}"))
        parts.append(_text(place(0) - 7, up + 4, "end", f"{tick:g}"))
    parts.append(_text((place(0) + place(1)) / 2, _SIZE - 6, "middle", "probability of the best entity"))
    parts.append(f'<line class="ideal" x1="{place(0)}" y1="{rise(0)}" x2="{place(1)}" y2="{rise(1)}"/>')
    path = " ".join(f"{across:.1f},{rise(one.accuracy):.1f}" for across, one in marks)
    parts.append(f'<polyline points="{path}"/>')
    parts += [
        f'<line class="gap" x1="{across:.1f}" x2="{across:.1f}" y1="{rise(one.confidence):.1f}" '
        f'y2="{rise(one.accuracy):.1f}"/><circle cx="{across:.1f}" cy="{rise(one.accuracy):.1f}" r="4.5">'
        f"<title>{one.mentions} mentions: probability {one.confidence:.3f}, right {one.accuracy:.3f}</title></circle>"
        for across, one in marks
    ]
    rows = "".join(
        f'<tr><td class="n">{one.mentions:,}</td><td class="n">{one.confidence:.4f}</td>'
        f'<td class="n">{one.accuracy:.4f}</td></tr>'
        for one in trust.bins
    )
    return (
        "<figure><figcaption>Share of mentions whose best entity is right</figcaption>"
        f'<svg viewBox="0 0 {_SIZE} {_SIZE}" role="img" aria-label="Reliability: share that is right against '
        f'probability; the numbers are in the table below">{"".join(parts)}</svg></figure>'
        '<details><summary>Numbers</summary><table class="plain"><thead><tr><th scope="col" class="n">mentions</th>'
        '<th scope="col" class="n">mean probability</th><th scope="col" class="n">share right</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></details>"
    )


def place(share: float) -> float:
    """Of a share on the figure's horizontal axis."""
    return _LEFT + (_SIZE - _LEFT - _EDGE) * share


def rise(share: float) -> float:
    """Of a share on its vertical axis."""
    return _EDGE + (_SIZE - _BOTTOM - _EDGE) * (1 - share)


def _text(left: float, top: float, anchor: str, text: str) -> str:
    return f'<text x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def component_bars(scores: Mapping[str, float], low: float, high: float) -> str:
    """The component scores as bars from zero, on a scale from ``low`` <= 0 to ``high`` >= 0."""
    span = high - low or 1.0
    zero = 100 * -low / span
    rows = []
    for name, label in COMPONENTS.items():
        if name in scores:
            value = scores[name]
            left, width = (zero, value) if value >= 0 else (zero + 100 * value / span, -value)
            rows.append(
                f'<li><span>{escape(label)}</span><b aria-hidden="true"><u style="left:{zero:.1f}%"></u>'
                f'<i style="left:{left:.1f}%;width:{100 * width / span:.1f}%"></i></b><em>{value:.2f}</em></li>'
            )
    return f'<ul class="components">{"".join(rows)}</ul>'
