"""The report's figures: bars against peers, recall and scaling, each with its command."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

from bench.report_data import Recall, Record, Run, Scaling
from bench.report_plots import Bar, Series, bars, lines
from bench.report_text import bytes_text, rate_text, seconds_text, significant

_LOG_FROM = 8  # times the smallest value: from there on bars are drawn on a logarithmic axis
_AXES = {"E": "entities", "M": "mentions", "B": "batch", "threads": "threads"}
NOT_MEASURED = '<div class="card"><p class="none">not measured</p>{}</div>'


def against_peers(runs: Iterable[Run], title: Callable[[str], str]) -> str:
    """A card for each set of records that are compared with one another."""
    cards = [_peer_card(run, together, title) for run in runs for together in compared(run)]
    legend = '<ul class="legend"><li class="s1">m3el_fast</li><li class="speer">what it is compared with</li></ul>'
    return legend + "".join(cards) if cards else NOT_MEASURED.format(code("pytest bench/ --benchmark"))


def compared(run: Run) -> list[list[Record]]:
    """Sets of measured records that ratios connect, in the order of the file."""
    records = run.by_name()
    sets: list[set[str]] = []
    for record in records.values():
        names = {record.name, *(peer for peer in record.ratios if peer in records)}
        if len(names) == 1:
            continue
        touching = [one for one in sets if one & names]
        sets = [one for one in sets if not one & names] + [names.union(*touching)]
    return [[record for record in records.values() if record.name in one] for one in sets]


def _peer_card(run: Run, records: Sequence[Record], title: Callable[[str], str]) -> str:
    rates = [record.rate for record in records if record.rate]
    ordered = sorted(records, key=lambda record: -(record.rate or 0.0))
    rows = [
        Bar(record.name, "peer" if record.is_peer else "own", record.rate, _rate_and_ratio(record))
        for record in ordered
    ]
    log = bool(rates) and max(rates) > _LOG_FROM * min(rates)
    groups = list(dict.fromkeys(record.group for record in records))
    return (
        f'<div class="card"><h3>{escape(title(groups[0]))}</h3>'
        f"{bars(rows, f'{records[0].unit} a second', rate_text, log=log)}"
        f'<p class="note">{escape(run.path.name)}, {escape(run.date[:10])} · {code(run.command(groups))}</p></div>'
    )


def _rate_and_ratio(record: Record) -> str:
    """With the ratio to the fastest peer."""
    text = rate_text(record.rate or 0.0)
    if not record.ratios:
        return text
    best = " best peer" if len(record.ratios) > 1 else ""
    return f"{text}, {significant(min(record.ratios.values()))} x{best}"


def recall(files: Sequence[Recall]) -> str:
    """Recall and time against the number of candidates, for each file."""
    command = code("python -m bench.recall CHECKPOINT --data DIR")
    return "".join(_recall_card(file, command) for file in files) or NOT_MEASURED.format(command)


def _recall_card(file: Recall, command: str) -> str:
    scan, *rest = file.curve
    candidates = sorted(rest, key=lambda line: line["candidates"])
    keys = [key for key in scan if key.startswith("recall of")]
    found = [
        Series(
            key.replace("recall of the best 10", "of the exact best ten, found").replace(
                "recall of the best 1", "exact best, found"
            ),
            [(line["candidates"], line[key]) for line in candidates if key in line],
            str(number),
        )
        for number, key in enumerate(keys[:2], 1)
    ]
    times = [Series("two stages", [(line["candidates"], line["seconds"]) for line in candidates], "1")]
    if candidates:
        ends = (candidates[0]["candidates"], candidates[-1]["candidates"])
        name = f"exhaustive scan: {seconds_text(scan['seconds'])}"
        times.append(Series(name, [(x, scan["seconds"]) for x in ends], "level"))
    x_label = "candidates a mention, log scale"
    left = lines("Recall of the exhaustive scan's answers", found, x_label, _count, lambda y: f"{y:.4g}", log_y=False)
    right = lines(
        f"Seconds for {file.mentions:,} mentions, log scale", times, x_label, _count, seconds_text, log_y=True
    )
    return (
        f'<div class="card"><h3>{escape(file.data)}: {file.mentions:,} mentions x {file.entities:,} entities</h3>'
        f'<div class="plots">{left}{right}</div><p class="note">{escape(file.path.name)}, {escape(file.date)}, '
        f"threads: {escape(str(file.machine.get('threads', 'not recorded')))} · {command}</p></div>"
    )


def scaling(runs: Iterable[Run]) -> str:
    """Time and memory against a size, for each record that has them."""
    cards = [
        _scaling_card(run, record, record.scaling)
        for run in runs
        for record in run.records
        if record.scaling is not None
    ]
    return "".join(cards) or NOT_MEASURED.format(code("pytest bench/ --benchmark"))


def _scaling_card(run: Run, record: Record, found: Scaling) -> str:
    axis = _AXES.get(found.axis, found.axis)
    seconds = [(x, y) for x, y, _ in found.points if y is not None and y > 0]
    memory = [(x, z) for x, _, z in found.points if z is not None and z > 0]
    series = [Series("measured", seconds, "1")]
    if found.exponent is not None and seconds:
        name = f"fitted exponent {found.exponent:.2f}"
        series.append(Series(name, fitted(seconds, found.exponent), "fit"))
    x_label = f"{axis}, log scale"
    left = lines("Seconds, log scale", series, x_label, _count, seconds_text, log_y=True)
    right = lines("Peak memory, log scale", [Series("measured", memory, "2")], x_label, _count, bytes_text, log_y=True)
    return (
        f'<div class="card"><h3>{escape(record.name)}</h3><div class="plots">{left}{right}</div>'
        f'<p class="note">{escape(run.path.name)}, {escape(run.date[:10])} · {code(record.command)}</p></div>'
    )


def fitted(points: Sequence[tuple[float, float]], exponent: float) -> list[tuple[float, float]]:
    """Ends of the line of that slope through the middle of the points, in logarithms."""
    middle = sum(math.log(y) - exponent * math.log(x) for x, y in points) / len(points)
    ends = (min(x for x, _ in points), max(x for x, _ in points))
    return [(x, math.exp(middle + exponent * math.log(x))) for x in ends]


def _count(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{significant(value / (1e3 if unit == 'k' else size))}{unit}"
    return significant(value, 4)


def code(command: str) -> str:
    return f"<code>{escape(command)}</code>"
