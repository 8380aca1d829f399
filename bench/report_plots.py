"""Plots of the report as inline SVG and HTML, styled by the page's style sheet: no library, no request, any width."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from bench.report_text import significant

Format = Callable[[float], str]
_WIDTH, _HEIGHT = 420, 250  # of the viewBox; about as many CSS pixels, so that type keeps its size
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 24, 42
_GAP = 10  # between labels, at least


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: ``kind`` own, peer or modelled; ``value`` None = not measured; ``goal`` is marked."""

    label: str
    kind: str
    value: float | None
    text: str
    goal: float | None = None


def bars(rows: Sequence[Bar], axis: str, tick: Format, *, log: bool, roof: float | None = None) -> str:
    """Horizontal bars, largest value first as given; ``roof``: where the axis has a line to be reached."""
    values = [row.value for row in rows if row.value]
    scale = log_axis(values) if log else linear_axis([0.0, *values, *([roof] if roof else [])])
    lines = [_line(scale.place(value), tick(value)) for value in scale.ticks]
    if roof is not None:
        lines.append(_line(scale.place(roof), "", "roof"))
    body = "".join(_bar(row, scale) for row in rows)
    return (
        f'<div class="bars"><div class="grid" aria-hidden="true">{"".join(lines)}</div>{body}'
        f'<div class="axis">{escape(axis)}{", log scale" if log else ""}</div></div>'
    )


def _line(place: float, label: str, kind: str = "") -> str:
    end = "low" if place < 0.05 else "high" if place > 0.95 else ""  # where a narrow page has no room beside the label
    return f'<i class="{kind} {end}" style="left:{100 * place:.2f}%"><b>{escape(label)}</b></i>'


def _bar(row: Bar, scale: Axis) -> str:
    if row.value is None:
        track, text = "", "not measured"
    else:
        track, text = f'<i style="width:{100 * max(scale.place(row.value), 0.002):.2f}%"></i>', row.text
    if row.goal is not None:
        track += f'<u style="left:{100 * scale.place(row.goal):.2f}%" title="goal {escape(significant(row.goal))}"></u>'
    kind = row.kind if row.value is not None else "none"
    return (
        f'<div class="bar {kind}"><span class="label">{escape(row.label)}</span>'
        f'<span class="track">{track}</span><span class="value">{escape(text)}</span></div>'
    )


@dataclass(frozen=True)
class Series:
    """Points of a line, by x; ``kind``: 1, 2 (measured), fit or level (without marks)."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str


def lines(title: str, series: Sequence[Series], x_label: str, x_text: Format, y_text: Format, *, log_y: bool) -> str:
    """Lines over a logarithmic x; the title says what y is, with its unit."""
    xs = sorted({x for one in series for x, _ in one.points})
    ys = [y for one in series for _, y in one.points]
    if not xs:
        return f'<figure class="plot"><figcaption>{escape(title)}</figcaption><p class="none">not measured</p></figure>'
    across, up = log_axis(xs, tight=True), (log_axis(ys) if log_y else linear_axis(ys))
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + width * across.place(x), _TOP + height * (1 - up.place(y))

    parts = []
    for y in up.ticks:
        _, top = place(xs[0], y)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{top:.1f}" y2="{top:.1f}"/>')
        parts.append(text_at(_LEFT - 7, top + 4, "end", y_text(y)))
    end, low = -math.inf, _HEIGHT - _BOTTOM + 17
    for x in xs:
        (left, _), half = place(x, ys[0]), 3.5 * len(x_text(x))  # of the label, in 12-pixel type
        if left - half > end:
            parts.append(text_at(left, low, "middle", x_text(x)))
            end = left + half + _GAP
    parts.append(text_at(_LEFT + width / 2, _HEIGHT - 6, "middle", x_label))
    for one in series:
        spots = [place(x, y) for x, y in one.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline class="s{one.kind}" points="{path}"/>')
        if one.kind in ("1", "2"):
            parts += [
                f'<circle class="s{one.kind}" cx="{left:.1f}" cy="{top:.1f}" r="4">'
                f"<title>{escape(one.name)}: {escape(y_text(y))} at {escape(x_text(x))}</title></circle>"
                for (left, top), (x, y) in zip(spots, one.points, strict=True)
            ]
    legend = "".join(f'<li class="s{one.kind}">{escape(one.name)}</li>' for one in series)
    return (
        f'<figure class="plot"><figcaption>{escape(title)}</figcaption><ul class="legend">{legend}</ul>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def text_at(left: float, top: float, anchor: str, text: str) -> str:
    return f'<text class="tick" x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


@dataclass(frozen=True)
class Axis:
    """From values to places between 0 and 1."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool

    def place(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def log_axis(values: Sequence[float], tight: bool = False) -> Axis:
    """Whole decades, or halves of one where the values span few; ``tight``: the values' own range and a margin."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive), max(positive)
    if tight:
        margin = (high / low) ** 0.04 if high > low else 2.0
        return Axis(low / margin, high * margin, (), True)
    few = high / low < 30
    steps = (1, 2, 5) if few else (1,)
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    marks = [step * 10.0**exponent for exponent in exponents for step in steps]
    # A bar at the lower end would have no length: the axis starts a mark below the smallest value.
    bottom = max(mark for mark in marks if mark < low * 0.999)
    top = min(mark for mark in marks if mark >= high)
    ticks = [mark for mark in marks if bottom <= mark <= top]
    every = math.ceil(len(ticks) / 7)
    return Axis(bottom, top, tuple(ticks[::every]), True)


def decades(values: Sequence[float]) -> Axis:
    """Whole decades around the values."""
    low, high = math.floor(math.log10(min(values) * 0.7)), math.ceil(math.log10(max(values) * 1.02))
    return Axis(10.0**low, 10.0**high, tuple(10.0**exponent for exponent in range(low, high + 1)), True)


def linear_axis(values: Sequence[float]) -> Axis:
    """Round steps around the values."""
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 0.5 * abs(low) - 1e-9, high + 0.5 * abs(high) + 1e-9
    raw = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, tuple(number * step for number in range(first, last + 1)), False)
