"""The report's page: one self-contained HTML document."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from m3el_fast.calibration import HOW_TO_CALIBRATE
from m3el_fast.calibration_metrics import BINS
from m3el_fast.metrics import HITS, Metrics
from m3el_fast.report.cases import cases
from m3el_fast.report.contents import SHOWN, Report, by_ambiguity, by_image, misses, rank_histogram
from m3el_fast.report.plots import groups, histogram, reliability
from m3el_fast.report.style import STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(report: Report) -> str:
    """The document. It holds all that it shows and asks for nothing; pictures of the worst misses are made small."""
    sections = {
        "Metrics": _metrics(report.metrics),
        "Ranks of the answers": _ranks(report),
        "Calibration": _calibration(report),
        "Ambiguity": _ambiguity(report),
        "Images": _images(report),
        "Worst misses": _misses(report),
    }
    names = {name: name.lower().replace(" ", "-") for name in sections}
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for name, anchor in names.items())
    body = "".join(
        f'<section id="{names[name]}" aria-label="{escape(name)}"><h2>{escape(name)}</h2>{text}</section>'
        for name, text in sections.items()
    )
    title = f"{report.data}, {report.split_name}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>m3el_fast evaluation: {escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p>Checkpoint <code>{escape(report.checkpoint)}</code>; "
        f"{escape(report.split.describe())}. Each was ranked against all {len(report.index):,} entities of the KB.</p>"
        f"{_tiles(report)}<nav>{links}</nav></header>{body}</main></body></html>\n"
    )


def _tiles(report: Report) -> str:
    full = next(iter(report.metrics.values()))
    tiles = {"Hits@1": f"{full.hits[1]:.1%}", "Hits@10": f"{full.hits[10]:.1%}", "MRR": f"{full.mrr:.3f}"}
    if report.trust is not None:
        tiles["ECE"] = f"{report.trust.ece:.3f}"
        if report.trust.nil is not None and report.trust.nil.mentions:
            tiles["F1 of NIL"] = f"{report.trust.nil.f1:.3f}"
    body = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in tiles.items())
    return f'<dl class="tiles">{body}</dl>'


def _metrics(metrics: Mapping[str, Metrics]) -> str:
    head = "".join(f'<th scope="col" class="n">Hits@{k}</th>' for k in HITS)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f'<td class="n">{one.hits[k]:.4f}</td>' for k in HITS)
        + f'<td class="n">{one.mrr:.4f}</td><td class="n">{one.mr:,.1f}</td></tr>'
        for name, one in metrics.items()
    )
    return (
        '<div class="card scroll" tabindex="0" role="region" aria-label="Table of metrics"><table class="plain">'
        f'<thead><tr><td></td>{head}<th scope="col" class="n">MRR</th><th scope="col" class="n">MR</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _ranks(report: Report) -> str:
    found = rank_histogram(report.answers.ranks["union"])
    return (
        "<p>Rank 1 is the best entity. Entities with the same score count half, and a rank between two places counts "
        f'as the worse one.</p><div class="card">{histogram(found)}</div>'
    )


def _calibration(report: Report) -> str:
    trust, calibration = report.trust, report.calibration
    if trust is None or calibration is None:
        said = "The checkpoint is not calibrated: its scores rank entities and are no probabilities."
        return f"<p>{said} {escape(HOW_TO_CALIBRATE)}.</p>"
    facts = {
        "expected calibration error (ECE)": f"{trust.ece:.4f}",
        "negative log-likelihood of the answer": f"{trust.nll:.4f}",
        "mean probability of the best entity": f"{trust.confidence:.4f}",
        "share of best entities that are right": f"{trust.accuracy:.4f}",
        "mentions": f"{trust.mentions:,}",
    }
    if trust.nil is not None:
        nil = trust.nil
        facts |= {
            "NIL threshold: no link below it": f"{nil.threshold:.4f}",
            "mentions linked to nothing": f"{nil.dropped:,}",
            "of them without an answer (NIL)": f"{nil.found:,} of {nil.mentions:,}",
            "of them with the answer as best entity": f"{nil.lost:,}",
        }
        if nil.mentions:
            facts |= {
                "precision of NIL": f"{nil.precision:.4f}",
                "recall of NIL": f"{nil.recall:.4f}",
                "F1 of NIL": f"{nil.f1:.4f}",
            }
        facts["share of all mentions treated rightly"] = f"{nil.accuracy:.4f}"
    table = "".join(f'<tr><th scope="row">{escape(k)}</th><td class="n">{v}</td></tr>' for k, v in facts.items())
    return (
        f"<p>A softmax of score / {calibration.temperature:.4g}, fitted to {calibration.mentions:,} dev mentions of "
        f"{escape(calibration.data)} and a KB of {calibration.entities:,} entities. Mentions are in {BINS} bins of "
        "equal size by the probability of their best entity; equal ones share a bin. On the dashed line "
        'probabilities are what they claim to be; below it they claim too much.</p><div class="card split"><div>'
        f'{reliability(trust)}</div><table class="plain facts"><tbody>{table}</tbody></table></div>'
    )


def _ambiguity(report: Report) -> str:
    return (
        "<p>How many entities bear the name of the mention: its words are in theirs, one after another, whatever their "
        f'case. What stands in brackets in theirs does not count.</p><div class="card">'
        f"{groups('entities', by_ambiguity(report))}</div>"
    )


def _images(report: Report) -> str:
    return (
        "<p>Which of the mention and its answer have an image that can be read.</p>"
        f'<div class="card">{groups("with an image", by_image(report))}</div>'
    )


def _misses(report: Report) -> str:
    found = misses(report)
    total = int((report.answers.ranks["union"] > 1).sum())
    if not found:
        return "<p>There are none: every answer is at rank 1.</p>"
    best = min(SHOWN, len(report.index))
    which = "All" if len(found) == total else f"{len(found)} of"
    dropped = " Linked to nothing: the best entity is less probable than the NIL threshold."
    return (
        f"<p>{which} {total:,} mentions whose answer is not at rank 1, those first whose answer is ranked lowest, "
        f"each with the {best} best entities. Bars are the scores of the components, on one scale for a mention."
        f"{dropped if any(miss.dropped for miss in found) else ''}</p>"
        f"{cases(found)}"
    )
