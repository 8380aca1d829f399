"""The README's table of exact ranking, from results files."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bench.report_data import GPU_GROUPS, Record, Run
from m3el_fast.errors import InputError

BASE = "released eager, tuned malloc"
_LEVELS = {  # best first; scalar code is there for other processors, and timed on one mention
    "amx": "bf16 scan on AMX + fp32 settling",
    "avx512bf16": "bf16 scan + fp32 settling",
    "avx512": "AVX-512 fp32",
    "avx2": "AVX2 fp32",
}
_PEERS = {
    "reformulated eager": "eager PyTorch, the cheaper exact form",
    BASE: "the released code's form, eager PyTorch, best chunk, malloc tuned",
    "released eager, default malloc": "the same with the default malloc",
}


def table(runs: Iterable[Run]) -> str:
    """Markdown: rates and ratios of the newest session of the default scale that ranked, and the GPU's where it was
    measured.

    Raises:
        InputError: no session ranked both M3EL and the released form.
    """
    runs = list(runs)
    ranked = [run for run in runs if run.scale in ("default", "") and _levels(run, "m3el") and _rate(run, BASE)]
    if not ranked:
        raise InputError("results files", f"one with '{BASE}' and 'ranking, m3el, LEVEL', measured", "none such")
    run = max(ranked, key=lambda one: one.date)
    records, base = run.by_name(), _rate(run, BASE) or math.nan
    lines = ["| | pairs/s | ratio |", "|---|---|---|"]
    best, *others = _levels(run, "m3el")
    lines.append(
        _line(f"**m3el_fast, M3EL**, exact ({_LEVELS[best]})", records[f"ranking, m3el, {best}"].rate, base, "**")
    )
    for level in others:
        lines.append(_line(f"m3el_fast, M3EL, {_LEVELS[level]}", records[f"ranking, m3el, {level}"].rate, base))
    peers = [records[name] for name in records[f"ranking, m3el, {best}"].ratios if name in records]
    for peer in sorted(peers, key=lambda record: -(record.rate or 0.0)):
        lines.append(_line(_PEERS.get(peer.name, peer.name), peer.rate, base))
    for level in _levels(run, "mimic")[:1]:
        lines.append(_line("**m3el_fast, MIMIC**, exact", records[f"ranking, mimic, {level}"].rate, None, "**"))
    scans = [
        record
        for one in runs
        if one.gpu
        for record in one.records
        if record.group == GPU_GROUPS["scan"] and _timed(record)
    ]
    lines += [_line(f"GPU: {record.name}", record.rate, None) for record in scans] or ["| GPU | not measured | |"]
    return "\n".join(lines) + "\n"


def _levels(run: Run, kind: str) -> list[str]:
    return [level for level in _LEVELS if _rate(run, f"ranking, {kind}, {level}")]


def _rate(run: Run, name: str) -> float | None:
    record = run.by_name().get(name)
    return record.rate if record else None


def _timed(record: Record) -> bool:
    return record.rate is not None and not record.is_peer


def _line(name: str, rate: float | None, base: float | None, mark: str = "") -> str:
    label = name.replace("|", "\\|")
    if rate is None:
        return f"| {label} | not measured | |"
    ratio = "" if base is None else "1" if rate == base else f"{rate / base:.1f}"
    return f"| {label} | {mark}{rounded(rate)}{mark} | {f'{mark}{ratio}{mark} ' if ratio else ''}|"


def rounded(rate: float) -> str:
    """To three digits, from a million on to thousands."""
    places = min(3, math.floor(math.log10(rate)) - 2)
    return f"{round(rate, -places):,.{max(-places, 0)}f}"
