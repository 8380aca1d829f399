"""The report's rooflines: achieved FLOP/s over FLOP per byte of main memory, under the machine's ceilings; and shares
of the computed limit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count

from bench.report_data import GPU_COMMAND, GPU_GROUPS, Record, Run, goal, missing_gpu_parts
from bench.report_figures import NOT_MEASURED, code
from bench.report_plots import Axis, Bar, bars, decades, text_at
from bench.report_text import rate_text, significant

Title = Callable[[str], str]
Place = Callable[[float, float], tuple[float, float]]

_WIDTH, _HEIGHT = 460, 300  # of the viewBox
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 20, 42
_LABEL = 12  # pixels between numbers and other points, at least
_KINDS = {"own": "m3el_fast", "peer": "what it is compared with", "modelled": "modelled, not measured"}

_ABOUT = (
    "A point is a benchmark that counts its work: products and sums, over the bytes that main memory has to give and "
    "take once (bench/limits.py; exponentials are no FLOP and only the shares below count them). All forms of a "
    "computation are given the work of its cheapest exact form, so that between two points, one above the other, the "
    "distance is the ratio of their rates."
)
_MEASURED = (
    " The roof was measured in the same session: large matrix products, and reading a mapped file. Pale points are "
    "those of the other plots. Selection, loading, building and whole training steps count no FLOP and are not drawn."
)
_H100 = (
    "Modelled kernels were not run: their time on an H100 is counted from their machine code, at the chip's own rates "
    "(bench/roofline.py), which are also the roof: fp32 is three products in tf32."
)
_SHARES = (
    "The line at 100% is the time that all counted work, exponentials too, takes at the rates of this machine, "
    "measured in the same session. It is a yardstick: above it a kernel runs closer to the processor's peak than "
    "<code>torch.matmul</code> does on large matrices. Of GPU kernels it is the time at an H100's rates."
)


@dataclass(frozen=True)
class Roof:
    """``compute``: FLOP/s by name; ``bandwidth``: bytes/s of what ``memory`` names."""

    compute: Mapping[str, float]
    bandwidth: float
    memory: str


@dataclass(frozen=True)
class Point:
    """``x``: FLOP per byte; ``y``: FLOP/s; ``kind``: own, peer or modelled."""

    name: str
    kind: str
    x: float
    y: float


def roofline(runs: Iterable[Run], modelled: Sequence[Record], title: Title) -> str:
    """Rooflines of each session's CPU, then of GPUs; then all shares of the limit."""
    runs = list(runs)
    cards = [_cpu_card(run, title) for run in runs]
    plots = "".join(cards) or NOT_MEASURED.format(code("pytest bench/ --benchmark"))
    return f'<p class="note">{_ABOUT}{_MEASURED}</p>{plots}{_gpu_card(runs, modelled, title)}{_shares(runs, modelled)}'


def _cpu_card(run: Run, title: Title) -> str:
    groups = _points(record for record in run.by_name().values() if record.group not in GPU_GROUPS.values())
    if not groups or len(run.ceilings) < 3:
        return ""
    roof = Roof(
        {name: run.ceilings[f"{name} FLOP/s"] for name in ("fp32", "bf16")}, run.ceilings["bytes/s"], "main memory"
    )
    named = [(_short(title(group)), points) for group, points in groups.items()]
    source = f"{escape(run.path.name)}, {escape(run.date[:10])} · {code(run.command(groups))}"
    return f'<div class="card"><h3>CPU, measured</h3>{_plots(roof, named)}<p class="note">{source}</p></div>'


def _gpu_card(runs: Sequence[Run], modelled: Sequence[Record], title: Title) -> str:
    measured = [record for run in runs for record in run.by_name().values() if record.group in GPU_GROUPS.values()]
    named = [(_short(title(group)), points) for group, points in _points(measured).items()]
    named += [("Modelled, not measured", points) for points in _points(modelled, "modelled").values()]
    command = code(GPU_COMMAND)
    if not named:
        return f'<div class="card"><h3>GPU</h3><p class="none">not measured</p>{command}</div>'
    from bench.roofline import CLOCK, HBM_BYTES, SMS, TENSOR_FLOP

    peak = {kind: clocks * SMS * CLOCK for kind, clocks in TENSOR_FLOP.items()}
    roof = Roof({"3 x tf32": peak["TF32"] / 3, "bf16": peak["BF16"]}, HBM_BYTES, "HBM")
    none = "" if _points(measured) else f' · measured: <span class="none">not measured</span>, {command}'
    about = f'<p class="note">{_H100}</p>' if modelled else ""
    source = f"{code('python -m bench.roofline')}{none}" if modelled else command
    plots = f'{about}{_plots(roof, named)}<p class="note">{source}</p>'
    return f'<div class="card"><h3>GPU, under the roof of an H100</h3>{plots}</div>'


def _short(title: str) -> str:
    """Up to the first punctuation."""
    return re.split(r"[:;,(]", title)[0].strip()


def _points(records: Iterable[Record], kind: str = "") -> dict[str, list[Point]]:
    """Of the records that were timed and count their work, by group."""
    groups: dict[str, list[Point]] = {}
    for record in records:
        if record.rate and record.flop and record.moved:
            of = kind or ("peer" if record.is_peer else "own")
            point = Point(record.name, of, record.flop / record.moved, record.flop * record.rate)
            groups.setdefault(record.group, []).append(point)
    return groups


def _plots(roof: Roof, groups: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """A plot for each group, on the same axes; what the others hold is pale."""
    every = [point for _, points in groups for point in points]
    top = max(roof.compute.values())
    ridge = top / roof.bandwidth
    across = decades([point.x for point in every] + [ridge / 30, ridge])  # a slope that its name fits on
    up = decades([point.y for point in every] + [top])
    kinds = dict.fromkeys(point.kind for point in every)
    legend = "".join(f'<li class="s{kind}">{_KINDS[kind]}</li>' for kind in _KINDS if kind in kinds)
    figures = [
        _figure(name, roof, sorted(points, key=lambda point: -point.y), every, across, up) for name, points in groups
    ]
    return f'<ul class="legend dots">{legend}</ul><div class="plots">{"".join(figures)}</div>'


def _figure(name: str, roof: Roof, points: Sequence[Point], every: Sequence[Point], across: Axis, up: Axis) -> str:
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + width * across.place(x), _TOP + height * (1 - up.place(y))

    low = _HEIGHT - _BOTTOM
    parts = [_grid_line(place(x, up.low)[0], place(x, up.low)[0], _TOP, low) for x in across.ticks]
    parts += [_grid_line(_LEFT, _WIDTH - _RIGHT, place(across.low, y)[1], place(across.low, y)[1]) for y in up.ticks]
    parts += [text_at(place(x, up.low)[0], low + 16, "middle", rate_text(x)) for x in across.ticks]
    parts += [text_at(_LEFT - 6, place(across.low, y)[1] + 4, "end", _flops(y)) for y in up.ticks]
    parts.append(text_at(_LEFT + width / 2, _HEIGHT - 6, "middle", f"FLOP per byte of {roof.memory}, log scales"))
    parts.append(text_at(_LEFT - 6, 10, "end", "FLOP/s"))
    parts += _roof(roof, across, up, place)
    parts += [f'<circle class="faint" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in (place(p.x, p.y) for p in every)]
    spots = [place(point.x, point.y) for point in points]
    parts += [
        f'<circle class="s{point.kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{_text(point)}</title></circle>'
        for point, (x, y) in zip(points, spots, strict=True)
    ]
    for number, (x, y) in enumerate(_free_places(spots), 1):
        parts.append(f'<text class="number" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{number}</text>')
    items = "".join(
        f'<li class="s{point.kind}"><b>{number}</b> {escape(point.name)}<span>{_flops(point.y)}FLOP/s</span></li>'
        for number, point in enumerate(points, 1)
    )
    return (
        f'<figure class="plot"><figcaption>{escape(name)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Roofline: {escape(name)}">{"".join(parts)}</svg>'
        f'<ol class="points">{items}</ol></figure>'
    )


def _free_places(spots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A place for the number of each point, beside it, that no other point or number takes."""
    taken, places = list(spots), []
    for number, (x, y) in enumerate(spots):
        others = taken[:number] + taken[number + 1 :]
        near = ((x + dx, y + dy) for step in count() for dy in (step, -step) for dx in (_LABEL, -_LABEL))
        found = next((a, b) for a, b in near if all(abs(a - c) >= _LABEL or abs(b - d) >= _LABEL for c, d in others))
        taken.append(found)
        places.append((found[0], found[1] + 4))  # a text's place is its foot
    return places


def _roof(roof: Roof, across: Axis, up: Axis, place: Place) -> list[str]:
    """The slope of the memory up to the highest ceiling, and each ceiling from where it binds."""
    top = max(roof.compute.values())
    first = max(across.low, up.low / roof.bandwidth)
    (x1, y1), (x2, y2) = place(first, first * roof.bandwidth), place(top / roof.bandwidth, top)
    parts = [_roof_line(x1, x2, y1, y2)]
    angle = math.degrees(math.atan2(y2 - y1, x2 - x1))
    x, y = x1 + (x2 - x1) / 3, y1 + (y2 - y1) / 3
    parts.append(
        f'<text class="roofname" transform="translate({x:.1f} {y - 6:.1f}) rotate({angle:.1f})" '
        f'text-anchor="middle">{significant(roof.bandwidth / 1e9)} GB/s</text>'
    )
    right = _WIDTH - _RIGHT
    for name, rate in roof.compute.items():
        left, y = place(rate / roof.bandwidth, rate)
        parts.append(_roof_line(left, right, y, y))
        # no point lies above the roof: there its name stands, of a lower ceiling to the left of the slope
        at = (right, y - 5) if rate == top else (left - 6, y + 4)
        parts.append(
            f'<text class="roofname" x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="end">{escape(name)} '
            f"{_flops(rate)}FLOP/s</text>"
        )
    return parts


def _grid_line(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _roof_line(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="roofline" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _flops(rate: float) -> str:
    """With the prefix of a unit: ``1.2 T``."""
    size, prefix = next(
        (
            (size, prefix)
            for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
            if rate >= size
        ),
        (1.0, ""),
    )
    return f"{significant(rate / size)} {prefix}"


def _text(point: Point) -> str:
    return f"{escape(point.name)}: {_flops(point.y)}FLOP/s at {significant(point.x)} FLOP per byte"


def _shares(runs: Sequence[Run], modelled: Sequence[Record]) -> str:
    """Share of the computed limit of everything that has one: measured, then modelled."""
    rows = [
        Bar(record.name, "own", record.share, f"{100 * record.share:.0f}%", _goal(record))
        for run in runs
        for record in run.by_name().values()
        if record.share is not None
    ]
    missing = missing_gpu_parts(runs)
    if missing:
        rows.append(Bar(f"GPU: {', '.join(missing)}", "own", None, ""))
    for record in modelled:
        rows.append(Bar(record.name, "modelled", record.share, f"{100 * (record.share or 0):.0f}%, modelled"))
    kinds = ['<li class="s1">measured</li>']
    kinds += ['<li class="smodelled">modelled</li>'] if modelled else []
    kinds += ['<li class="sgoal">bar of the issue</li>'] if any(row.goal for row in rows) else []
    commands = [code("pytest bench/ --benchmark")] + ([code("python -m bench.roofline")] if modelled else [])
    chart = bars(rows, "share of the computed limit", lambda x: f"{100 * x:.0f}%", log=False, roof=1.0)
    return (
        f'<div class="card"><h3>Share of the computed limit</h3><p class="note">{_SHARES}</p>'
        f'<ul class="legend">{"".join(kinds)}</ul>{chart}<p class="note">{" · ".join(commands)}</p></div>'
    )


def _goal(record: Record) -> float | None:
    bar = record.bars.get("share of limit")
    return None if bar is None else goal(bar)
