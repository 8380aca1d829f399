"""The README's figures beside its ranking table, from results files: what no file has reads "not measured"."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.report_data import GPU_GROUPS, Recall, Record, Run
from bench.report_text import rate_text
from bench.scales import LONG

NOT_MEASURED = "not measured"
_TUNED, _EAGER = "training, eager, tuned malloc", "rerank, eager gather + matmul"
_EXHAUSTIVE = "best ten, exhaustive scan"
_MAXSIM = "late interaction, 40 x 40 tokens, maxsim-cpu"


class Missing(Exception):
    """A figure that no results file has."""


class Figures:
    """Fields of records by name; one that was not measured raises :class:`Missing`."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self._records = records

    def record(self, name: str) -> Record:
        """``name`` may end with ``*``: the fastest that begins so."""
        if name.endswith("*"):
            found = [record for key, record in self._records.items() if key.startswith(name[:-1])]
        else:
            found = [self._records[name]] if name in self._records else []
        return max(found, key=lambda record: record.rate or 0.0) if found else _there(None)

    def rate(self, name: str) -> float:
        return _there(self.record(name).rate)

    def seconds(self, name: str) -> float:
        return _there(self.record(name).median)

    def share(self, name: str) -> float:
        return _there(self.record(name).share)

    def peak(self, name: str) -> float:
        return _there(self.record(name).peak)

    def ratio(self, name: str, peer: str) -> str:
        """``4.7x``."""
        return times(_there(self.record(name).ratios.get(peer)))

    def fact(self, name: str, key: str) -> Any:
        return _there(self.record(name).facts.get(key))


def _there(value: Any) -> Any:
    if value is None:
        raise Missing
    return value


def newest(runs: Iterable[Run], scale: str) -> Figures:
    """The records of the sessions at a scale (and of files that do not name theirs); of one name the latest counts."""
    found: dict[str, Record] = {}
    for run in sorted(runs, key=lambda run: run.date):
        if run.scale in (scale, ""):
            found |= {name: record for name, record in run.by_name().items() if record.rate is not None}
    return Figures(found)


def measured(runs: Sequence[Run]) -> str:
    """Markdown: the table of all that is measured beside exact ranking, and the figures of sentences."""
    of = {scale: newest(runs, scale) for scale in ("default", "million", "paper")}
    lines = ["| measured | |", "|---|---|"]
    lines += [f"| {label} | {_text(row, of[scale])} |" for scale, label, row in _ROWS]
    gpu = [r for run in runs for r in run.records if r.group in GPU_GROUPS.values() and r.rate and not r.is_peer]
    lines += [f"| GPU: {r.name} | {rate_text(r.rate or 0.0)} {r.unit}/s{_best_peer(r)} |" for r in gpu]
    lines += [] if gpu else [f"| GPU | {NOT_MEASURED} |"]
    sentences = [f"- {label}: {_text(row, of[scale])}" for scale, label, row in _SENTENCES]
    return "\n".join([*lines, "", *sentences]) + "\n"


def _text(row: Callable[[Figures], str], figures: Figures) -> str:
    try:
        return row(figures)
    except Missing:
        return NOT_MEASURED


def _best_peer(record: Record) -> str:
    if not record.ratios:
        return ""
    peer = min(record.ratios, key=lambda name: record.ratios[name])
    return f", {times(record.ratios[peer])} {peer.removeprefix(f'{record.name}: ')}"


def _two_stages(f: Figures) -> str:
    def one(candidates: int) -> str:
        name = f"best ten in two stages, {candidates} candidates"
        return f"{candidates:,} candidates {f.ratio(name, _EXHAUSTIVE)}"

    recall = f.fact("best ten in two stages, 100 candidates", "recall of the best ten")
    share = "all" if recall == 1 else f"{recall:.3f}"
    return f"{one(100)} ({share} of the exact best ten found), {one(1000)}"


def _latency(f: Figures, suffix: str = "") -> str:
    def one(name: str) -> str:
        p50, p99 = (f.fact(f"one mention, {name}{suffix}", f"p{n} ms") for n in (50, 99))
        return f"{p50:,.0f} / {p99:,.0f} ms"

    return f"exact scan {one('exact scan')}; 100 candidates {one('two stages, 100 candidates')}"


def _training(f: Figures) -> str:
    fp32, bf16 = (f.ratio(f"training, {form}", _TUNED) for form in ("fp32", "bf16"))
    less = f.peak(_TUNED) / f.peak("training, fp32")
    errors = [_power(f.fact(f"training, {form}", "gradient_error")) for form in ("fp32", "bf16")]
    return (
        f"fp32 {fp32}, bf16 products {bf16} the tuned eager form, 1/{less:.0f} of its memory; gradient error "
        f"{errors[0]}, bf16 {errors[1]} of its norm"
    )


def _compiled(f: Figures) -> str:
    """Against ``torch.compile`` of spec section 5."""

    def one(name: str) -> str:
        return f.ratio(f"{name}, ours", f"{name}, torch.compile of section 5")

    context = "cross_modal_context"
    both = f"{context} forward + backward"
    return f"{one('icl_loss forward + backward')}; {one(context)}; {one(both)} `torch.compile` of the cheaper form"


def _topk(f: Figures) -> str:
    names = ("64 x 109,976, k = 10", "512 x 131,072, k = 100", "1 x 10,000,000, k = 100")
    first, second, third = (f.ratio(f"topk of {name}", f"torch.topk of {name}") for name in names)
    return f"{first}, {second} and {third} `torch.topk`"


def _g2l(f: Figures) -> str:
    bf16, fp32 = (f.ratio(f"late interaction, 40 x 40 tokens, G2L, {form}", _MAXSIM) for form in ("bf16", "fp32"))
    return f"{bf16} (bf16), {fp32} (fp32) the rate of maxsim-cpu (maximum alone)"


def _million(f: Figures) -> str:
    one, many = "best ten of one mention, *", "best ten of 64 mentions"
    opened = 1e3 * f.fact(one, "open seconds")
    return (
        f"{opened:.0f} ms; {f.seconds(one):.1f} s, warm; {rate_text(float(f'{f.rate(many):.2g}'))} pairs/s, "
        f"{f.peak(many) / 1e6:.0f} MB"
    )


def _index(f: Figures) -> str:
    name = "index build from tower outputs"
    size = f.fact(name, "bytes_per_entity") / 1e3
    return f"{size:.1f} kB an entity; {round(f.rate(name), -2):,.0f} entities/s from tower outputs"


def _reranked(f: Figures) -> str:
    return f"bf16 {f.ratio('rerank, bf16', _EAGER)}, fp32 {f.ratio('rerank, fp32', _EAGER)} eager gather + matmul"


def _coarse(f: Figures) -> str:
    return f"{f.ratio('coarse stage, top 100, ours', 'coarse stage, top 100, FAISS IndexFlatIP')} FAISS's flat index"


def _encoding(f: Figures) -> str:
    name = "encoding entities"
    return f"{100 * f.share(name):.0f}% of the rate of `torch.matmul` in bf16 at 4096^3; {f.rate(name):.0f} entities/s"


def _whole_test_set(f: Figures) -> str:
    record = f.record("ranking, m3el, *")
    mentions, entities = (_there(record.facts.get(name)) for name in ("mentions", "entities"))
    if mentions <= LONG:
        raise Missing
    return (
        f"all {mentions:,} test mentions ({mentions * entities / 1e6:.0f} million pairs) took "
        f"{_there(record.median):.0f} s, {rate_text(record.rate or 0.0)} pairs/s, once"
    )


def _reading(f: Figures) -> str:
    ratio = f.record("reading from the image cache").ratios.get("decoding JPEG, one thread")
    return f"{_there(ratio):.0f} times as fast as decoding JPEG"


_ROWS: tuple[tuple[str, str, Callable[[Figures], str]], ...] = (
    ("default", "two stages, 64 mentions x 109,976 entities, against the exact scan", _two_stages),
    ("default", "one mention against 109,976 entities, warm p50 / p99", _latency),
    ("default", "training `g2l_scores` forward + backward, B = 128, text and image", _training),
    (
        "default",
        "`icl_loss` forward + backward, B = 1,024; cross-modal contexts forward; forward + backward",
        _compiled,
    ),
    ("default", "encoding the KB, ViT-B/32 towers, bf16", _encoding),
    ("default", "`rerank_topk`, 1,000 candidates x 64 mentions", _reranked),
    ("default", "`topk`: 64 x 110k, k = 10; 512 x 131k and 1 x 10M, k = 100", _topk),
    ("default", "coarse stage: top 100 of 64 mentions x 109,976 entities, D = 800", _coarse),
    ("default", "`g2l_scores` a pair, 40 x 40 tokens (softmax, LayerNorm, gate)", _g2l),
    ("default", "an index of M3EL with WikiMEL's share of images", _index),
    ("million", "1,000,000 entities (17 GB): open; best ten of one mention; of 64 mentions", _million),
    (
        "million",
        "one mention against 1,000,000 entities, warm p50 / p99",
        lambda f: _latency(f, ", 1,000,000 entities"),
    ),
)
_SENTENCES: tuple[tuple[str, str, Callable[[Figures], str]], ...] = (
    ("default", "peak memory beyond the mapped index", lambda f: f"{f.peak('ranking, m3el, *') / 1e6:.0f} MB"),
    ("paper", "`--scale paper`, M3EL", _whole_test_set),
    ("default", "reading batches at 224 pixels from the image cache", _reading),
)


def recall(files: Sequence[Recall]) -> str:
    """Markdown: what two stages find: all of the largest file, and a row of each other one; empty without files."""
    if not files:
        return ""
    first, *others = sorted(files, key=lambda file: -file.mentions * file.entities)
    scan, *rest = first.curve
    curve = sorted(rest, key=lambda line: line["candidates"])
    sizes = [line["candidates"] for line in curve]
    lines = ["| candidates | " + " | ".join(f"{n:,.0f}" for n in sizes) + " | all: exact scan |"]
    lines.append("|---" * (len(sizes) + 2) + "|")
    rows: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        (f"{_sizes(first)}: exact best found", "recall of the best 1", _recall_text),
        ("of the exact best ten, found", "recall of the best 10", _recall_text),
        ("Hits@1", "hits@1", lambda x: f"{x:.3f}"),
        ("seconds", "seconds", lambda x: f"{x:.1f}"),
    )
    for label, key, text in rows:
        cells = [text(line[key]) if key in line else NOT_MEASURED for line in (*curve, scan)]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    for file in others:
        by_size = {line["candidates"]: line for line in file.curve[1:]}
        cells = [_both(by_size.get(n)) for n in sizes] + [_both(file.curve[0])]
        lines.append(f"| {_sizes(file)}: exact best, best ten found | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _sizes(file: Recall) -> str:
    return f"{file.data.partition(',')[0]}, {file.mentions:,} mentions x {file.entities:,} entities"


def _both(line: Mapping[str, float] | None) -> str:
    keys = ("recall of the best 1", "recall of the best 10")
    return NOT_MEASURED if line is None else ", ".join(_recall_text(line[key]) for key in keys)


def _recall_text(value: float) -> str:
    """To three digits, from 0.99 on to four: one that is not 1 does not read as 1."""
    return "1" if value == 1 else f"{value:.4f}" if value >= 0.99 else f"{value:.3f}"


def times(ratio: float) -> str:
    """``58x``, ``4.7x``."""
    return f"{ratio:.0f}x" if ratio >= 9.95 else f"{ratio:.1f}x"


def _power(value: float) -> str:
    """``5e-7``."""
    digits, exponent = f"{value:.0e}".split("e")
    return f"{digits}e{int(exponent)}"
