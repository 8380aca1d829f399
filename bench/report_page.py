"""The report's page: one self-contained HTML document of what results files say."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from bench.report_data import (
    GPU_COMMAND,
    GPU_PARTS,
    File,
    Quality,
    Recall,
    Record,
    Run,
    Serving,
    goal,
    letter,
    machines,
    missing_gpu_parts,
    outcome,
)
from bench.report_figures import against_peers, recall, scaling
from bench.report_roofline import roofline
from bench.report_serving import serving
from bench.report_style import STYLE
from bench.report_text import bytes_text, plain, rate_text, seconds_text, significant

_ROOT = Path(__file__).resolve().parents[1]
NONE = '<span class="none">not measured</span>'


@dataclass(frozen=True)
class Page:
    """What is shown: files, modelled GPU kernels (none: they were not asked for), and when."""

    files: Sequence[File]
    modelled: Sequence[Record]
    made: datetime

    def html(self) -> str:
        runs = [file for file in self.files if isinstance(file, Run)]
        recalls = [file for file in self.files if isinstance(file, Recall)]
        known = machines(self.files)
        sections = {
            "Summary": _summary(runs, known),
            "Against peers": against_peers(runs, title),
            "Roofline": roofline(runs, self.modelled, title),
            "Two-stage recall": recall(recalls),
            "Scaling": scaling(runs),
            "Serving": serving([file for file in self.files if isinstance(file, Serving)]),
            "Quality": _quality([file for file in self.files if isinstance(file, Quality)]),
            "Machines and versions": _machines(known),
            "Files": _files(self.files, known, bool(self.modelled)),
        }
        names = {name: name.lower().replace(" ", "-") for name in sections}
        links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for name, anchor in names.items())
        body = "".join(
            f'<section id="{names[name]}"><h2>{escape(name)}</h2>{text}</section>' for name, text in sections.items()
        )
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>m3el_fast benchmarks, {self.made:%Y-%m-%d}</title><style>{STYLE}</style></head><body><main>"
            f"<header><h1>m3el_fast benchmarks</h1><p>{self.made:%Y-%m-%d %H:%M}, results files: {len(self.files)}. "
            "Every result was compared with the reference before it was timed. What was not measured says so.</p>"
            f"<nav>{links}</nav>{_tiles(runs)}</header>{body}</main></body></html>\n"
        )


def _tiles(runs: Iterable[Run]) -> str:
    records = [record for run in runs for record in run.records]
    outcomes = [outcome(text) for record in records for text in record.bars.values()]
    counts = {
        "benchmarks timed": sum(record.rate is not None for record in records),
        "bars met": outcomes.count("met"),
        "bars missed": outcomes.count("missed"),
        "bars not measured": outcomes.count("not measured"),
    }
    return (
        '<div class="tiles">'
        + "".join(f"<div><b>{n}</b><span>{name}</span></div>" for name, n in counts.items())
        + "</div>"
    )


def title(group: str) -> str:
    """The first sentence of a test file's docstring; of what has none, its name."""
    path, text = _ROOT / group, None
    if re.fullmatch(r"bench/test_\w+\.py", group) and path.is_file():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    paragraph = " ".join((text or group).partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".").replace("``", "")


# ----------------------------------------------------------------------------------------------------------------------
# Summary

_COLUMNS = ("rate", "spread", "against peers", "share of limit", "peak memory", "bars", "machine")


def _kind(column: str) -> str:
    return "" if column in ("against peers", "bars", "machine") else "n"


def _summary(runs: Sequence[Run], known: Mapping[str, Mapping[str, Any]]) -> str:
    heads = "".join(f'<th class="{_kind(name)}">{name}</th>' for name in _COLUMNS)
    bodies = [_group(run, group, known) for run in runs for group in dict.fromkeys(r.group for r in run.records)]
    missing = missing_gpu_parts(runs)
    if missing:
        rows = "".join(
            f'<tr><td>{part}</td><td class="n" data-label="rate">{NONE}</td><td colspan="6"></td></tr>'
            for part in missing
        )
        command = " ".join([GPU_COMMAND, *(missing if len(missing) < len(GPU_PARTS) else [])])
        bodies.append(f"<tbody>{_group_head('GPU kernels', 'no results of a GPU', command)}{rows}</tbody>")
    return (
        '<p class="note">Median rate; spread is the interquartile range over the median; ratios are to peers (grey) in '
        "the same session; the limit is computed from counted work and the machine's measured rates (of products: "
        "torch.matmul's, so that a kernel closer to the processor's peak has more than 100%); memory is the "
        'peak of the process beyond what was there before.</p><div class="card">'
        f'<table class="wide"><thead><tr><th>benchmark</th>{heads}</tr></thead>{"".join(bodies)}</table></div>'
    )


def _group(run: Run, group: str, known: Mapping[str, Mapping[str, Any]]) -> str:
    rows = "".join(_row(record, letter(run.machine, known)) for record in run.records if record.group == group)
    source = f"{run.path.name}, {run.date[:10] or 'no date'}"
    return f"<tbody>{_group_head(title(group), source, run.command([group]))}{rows}</tbody>"


def _group_head(name: str, source: str, command: str) -> str:
    return (
        f'<tr class="group"><th colspan="8">{escape(name)}<span>{escape(source)} · <code>{escape(command)}</code>'
        "</span></th></tr>"
    )


def _row(record: Record, machine: str) -> str:
    rate = NONE if record.scaling is None else '<a href="#scaling">see Scaling</a>'
    if record.rate is not None:
        rate = f"{rate_text(record.rate)} {escape(record.unit)}/s"
    rate += "".join(
        f"<small>{escape(key.removesuffix(' ms'))} {seconds_text(value / 1e3)}</small>"
        for key, value in record.facts.items()
        if key.endswith(" ms") and isinstance(value, (int, float))
    )
    values = {
        "rate": rate,
        "spread": "" if record.spread is None or record.rounds == 1 else f"{100 * record.spread:.1f}%",
        "against peers": _list(_peers(record)),
        "share of limit": "" if record.share is None else f"{100 * record.share:.0f}%",
        "peak memory": "" if record.peak is None else bytes_text(record.peak),
        "bars": _list(_bar_text(record, key, text) for key, text in record.bars.items()),
        "machine": machine,
    }
    cells = "".join(
        f'<td class="{_kind(name)}" data-label="{name}">{value}</td>' if value else "<td></td>"
        for name, value in values.items()
    )
    return (
        f'<tr class="{"peer" if record.is_peer else ""}"><td>{escape(record.name)}{_details(record)}</td>{cells}</tr>'
    )


def _peers(record: Record) -> Iterator[str]:
    """The ratio to each, or why there is none."""
    for peer, ratio in record.ratios.items():
        yield f"{significant(ratio)} x {escape(_short(peer, record.name))}"
    for peer, why in record.facts.items():
        if str(why).startswith("not measured"):
            yield f'<span class="none">{escape(peer)}: {escape(str(why))}</span>'


def _short(peer: str, name: str) -> str:
    """A peer's name without the computation, which it shares with the record's: ``COMPUTATION, FORM``."""
    if peer.startswith(f"{name}: "):
        return peer.removeprefix(f"{name}: ")
    parts = peer.split(", ")
    for own in name.split(", "):
        if len(parts) == 1 or own != parts[0]:
            break
        parts = parts[1:]
    return ", ".join(parts)


def _list(items: Iterable[str]) -> str:
    text = "".join(f"<li>{item}</li>" for item in items)
    return f"<ul>{text}</ul>" if text else ""


def _bar_text(record: Record, key: str, text: str) -> str:
    asked, found = significant(goal(text)), outcome(text)
    if key == f"{record.unit}/s":
        asked = f"at least {rate_text(goal(text))} {key}"
    elif key == "peak MB":
        asked = f"peak at most {asked} MB"
    elif key in ("open seconds", "seconds"):
        asked = f"{key} at most {asked}"
    elif key.startswith("memory x "):
        asked = f"{asked} x less memory than {key[9:]}"
    else:
        asked = f"{key} at least {asked}" if key == "share of limit" else f"{asked} x {key.removeprefix('x ')}"
    mark, kind = {"met": ("✓", "good"), "missed": ("✗", "bad")}.get(found, ("?", "none"))
    return f'<span class="{kind}">{mark} {escape(found)}</span> <span class="none">{escape(asked)}</span>'


def _details(record: Record) -> str:
    facts = {}
    if record.median is not None:
        facts["median of a call"] = seconds_text(record.median)
    if record.rounds:
        facts["rounds"] = plain(record.rounds) + (", no spread" if record.rounds == 1 else "")
    facts |= {str(key): plain(value) for key, value in record.facts.items()}
    return f"<details><summary>more</summary>{_pairs(facts)}<code>{escape(record.command)}</code></details>"


def _pairs(facts: Mapping[str, str]) -> str:
    items = "".join(
        f"<dt>{escape(key.replace('GB_s', 'GB/s').replace('_', ' '))}</dt><dd>{escape(text)}</dd>"
        for key, text in facts.items()
    )
    return f"<dl>{items}</dl>"


# ----------------------------------------------------------------------------------------------------------------------
# Quality, machines, files


def _quality(files: Sequence[Quality]) -> str:
    if not files:
        return f'<div class="card">{NONE}</div>'
    return "".join(_quality_card(file) for file in files)


def _quality_card(file: Quality) -> str:
    rows = ""
    for model, variants in file.models.items():
        rows += f'<tr class="group"><th colspan="5">{escape(model)}</th></tr>'
        for variant, metrics in variants.items():
            hits = metrics["hits"]
            values = [hits.get("1"), hits.get("3"), hits.get("10"), metrics["mrr"]]
            cells = "".join(f'<td class="n">{"" if value is None else f"{value:.3f}"}</td>' for value in values)
            rows += f"<tr><td>{escape(variant)}</td>{cells}</tr>"
    heads = "".join(f'<th class="n">{name}</th>' for name in ("Hits@1", "Hits@3", "Hits@10", "MRR"))
    command = "<code>python -m m3el_fast.evaluate CHECKPOINT --split test</code>"
    return (
        f'<div class="card" style="overflow-x:auto"><p class="note">{escape(file.split)}; {escape(file.machine)}; '
        f"{escape(file.path.name)}, {escape(file.date)} · {command}</p>"
        f"<table><thead><tr><th>trained model, scored by</th>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        "</div>"
    )


def _machines(known: Mapping[str, Mapping[str, Any]]) -> str:
    if not known:
        return f'<div class="card">{NONE}</div>'
    return "".join(
        f'<div class="card"><h3>Machine {name}</h3>'
        f"{_pairs({str(key): plain(value) for key, value in machine.items()})}</div>"
        for name, machine in known.items()
    )


def _files(files: Sequence[File], known: Mapping[str, Mapping[str, Any]], modelled: bool) -> str:
    rows = "".join(
        f"<tr><td>{escape(file.path.name)}</td><td>{escape(file.date.replace('T', ' ') or 'no date')}</td>"
        f"<td>{'' if isinstance(file, Quality) else letter(file.machine, known)}</td></tr>"
        for file in files
    )
    command = shlex.join(["python", "-m", "bench.report", *(str(file.path) for file in files)])
    command += " --modelled" if modelled else ""
    return (
        '<div class="card" style="overflow-x:auto"><table><thead><tr><th>file</th><th>measured</th><th>machine</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
        f'<p class="note">This page: <code>{escape(command)}</code></p>'
    )
