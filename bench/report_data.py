"""What results files say, in one form: read by ``bench.report`` and ``bench.compare``."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m3el_fast.errors import InputError

GPU_COMMAND = "bench/gpu_check.sh table"
GPU_PARTS = ("icl_loss", "g2l_training", "g2l_scan", "scan", "cross_modal", "dual", "topk", "rerank")
GPU_GROUPS = {part: f"bench/test_gpu_{part}.py" for part in GPU_PARTS}


@dataclass(frozen=True)
class Scaling:
    """How a cost grows.

    Attributes:
        axis: ``E`` (entities), ``M`` (mentions), ``B`` (batch), ``threads``.
        points: (size, seconds, peak bytes), None = not measured; exponent: fitted to the seconds.
    """

    axis: str
    points: tuple[tuple[float, float | None, float | None], ...]
    exponent: float | None


@dataclass(frozen=True)
class Record:
    """One benchmark, as measured (or not).

    Attributes:
        group: test file; command: that measures it.
        rate: ``unit`` a second, None = not measured; median: seconds of a call, of ``rounds`` (0 = unknown).
        spread: interquartile range / median; ratios: how many times as fast as a peer, by its name.
        share: of the computed limit; peak: bytes; flop, moved: FLOP and bytes of main memory per item, counted.
        bars: what the issue asks, ``"GOAL: met"`` by what it is about.
        is_peer: stands for what others do; facts: all else that was put down.
    """

    name: str
    unit: str
    group: str
    command: str
    rate: float | None = None
    median: float | None = None
    rounds: int = 0
    spread: float | None = None
    ratios: Mapping[str, float] = field(default_factory=dict)
    share: float | None = None
    peak: float | None = None
    flop: float | None = None
    moved: float | None = None
    bars: Mapping[str, str] = field(default_factory=dict)
    scaling: Scaling | None = None
    is_peer: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A results file of pytest-benchmark: one session on one machine.

    Attributes:
        date: ISO; scale: of ``--scale``, empty = not recorded.
        ceilings: ``fp32 FLOP/s``, ``bf16 FLOP/s`` and ``bytes/s`` of the CPU, measured in the session.
    """

    path: Path
    date: str
    machine: Mapping[str, Any]
    records: tuple[Record, ...]
    scale: str = ""
    ceilings: Mapping[str, float] = field(default_factory=dict)

    @property
    def gpu(self) -> bool:
        """Whether a GPU's benchmarks were timed."""
        return any(record.group in GPU_GROUPS.values() and record.rate is not None for record in self.records)

    def command(self, groups: Iterable[str]) -> str:
        """What measures test files again."""
        return " ".join(["pytest", *groups, "--benchmark", *_scale_option(self.scale)])

    def by_name(self) -> dict[str, Record]:
        """The records; of those of one name the last, which is what later ones were compared with."""
        return {record.name: record for record in self.records}


def missing_gpu_parts(runs: Iterable[Run]) -> list[str]:
    """Parts of the GPU's benchmarks of which nothing was timed."""
    timed = {record.group for run in runs for record in run.records if record.rate is not None}
    return [part for part, group in GPU_GROUPS.items() if group not in timed]


@dataclass(frozen=True)
class Recall:
    """A file of ``bench.recall``; the curve's first entry is the exhaustive scan."""

    path: Path
    date: str
    machine: Mapping[str, Any]
    data: str
    mentions: int
    entities: int
    curve: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Quality:
    """A ``quality-*.json``: metrics by model and variant."""

    path: Path
    date: str
    machine: str
    split: str
    models: Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Serving:
    """A file of ``bench.serve_load``; the first entry of the load is one client's."""

    path: Path
    date: str
    machine: Mapping[str, Any]
    index: str
    entities: int
    candidates: int
    load: tuple[Mapping[str, float], ...]


File = Run | Recall | Quality | Serving


def load(path: Path) -> File:
    """Read one results file.

    Raises:
        InputError: it is none, or broken.
    """
    expected = "a results file of pytest-benchmark, bench.recall or bench.serve_load, or quality-*.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(path, expected, error.strerror or error) from error
    except ValueError as error:
        raise InputError(path, expected, f"no JSON: {error}") from error
    keys = set(data) if isinstance(data, dict) else set()
    readers: dict[str, Callable[[Path, dict[str, Any]], File]] = {
        "benchmarks": _run,
        "curve": _recall,
        "split": _quality,
        "load": _serving,
    }
    for key, read in readers.items():
        if key in keys:
            try:
                return read(path, data)
            except KeyError as error:
                raise InputError(path, f"{expected}, complete", f"no {error}") from error
            except (TypeError, ValueError, AttributeError) as error:
                raise InputError(path, f"{expected}, complete", error) from error
    raise InputError(path, expected, f"keys {', '.join(sorted(keys))}" if keys else type(data).__name__)


def load_run(path: Path) -> Run:
    """Read one results file of pytest-benchmark.

    Raises:
        InputError: it is none, or broken.
    """
    found = load(path)
    if not isinstance(found, Run):
        raise InputError(path, "a results file of pytest-benchmark", "another kind of results")
    return found


def _run(path: Path, data: dict[str, Any]) -> Run:
    info = data["machine_info"]
    machine = {**info["m3el_fast"], "python": info["python_version"], "pytest-benchmark": data["version"]}
    entries, scale = data["benchmarks"], info.get("scale", "")
    peers = {key[2:] for entry in entries for key in entry["extra_info"] if key.startswith("x ")}
    records = tuple(_record(entry, peers, scale) for entry in entries)
    ceilings = {key: _positive(value) for key, value in info.get("ceilings", {}).items()}
    return Run(path, data["datetime"][:19], machine, records, scale, ceilings)


def _record(entry: Mapping[str, Any], peers: set[str], scale: str) -> Record:
    facts = dict(entry["extra_info"])
    name, unit, stats = str(facts.pop("name")), str(facts.pop("unit")), entry.get("stats") or {}
    ratios = {key[2:]: _number(facts.pop(key)) for key in list(facts) if key.startswith("x ")}
    peak, ours = facts.pop("peak MB", None), facts.pop("ours", False)
    command = " ".join(["pytest", shlex.quote(entry["fullname"]), "--benchmark", *_scale_option(scale)])
    return Record(
        name,
        unit,
        group=entry["fullname"].partition("::")[0],
        command=facts.pop("command", command),
        rate=_maybe(facts.pop(f"{unit}/s", None)),
        median=_maybe(stats.get("median")),
        rounds=int(facts.pop("rounds", 0)),
        spread=_maybe(facts.pop("spread", None)),
        ratios=ratios,
        share=_maybe(facts.pop("share of limit", None)),
        peak=None if peak is None else _number(peak) * 1e6,
        flop=_maybe(facts.pop("flop", None), _positive),
        moved=_maybe(facts.pop("moved", None), _positive),
        bars=_bars(facts.pop("bars", {}), name),
        scaling=_scaling(facts.pop("scaling", None)),
        is_peer=name in peers and not ratios and not ours,
        facts=facts,
    )


def _scale_option(scale: str) -> list[str]:
    return ["--scale", scale] if scale else []


def _bars(data: Mapping[str, str], name: str) -> dict[str, str]:
    """Of the record ``name``, whose own peers are called ``name: PEER``."""
    for bar in data.values():
        goal(bar)  # raises where there is none
    return {key.removeprefix(f"{name}: "): bar for key, bar in data.items()}


def _scaling(data: Mapping[str, Any] | None) -> Scaling | None:
    if data is None:
        return None
    points = tuple((_number(x), _maybe(seconds), _maybe(peak)) for x, seconds, peak in data["points"])
    if any(x <= 0 for x, _, _ in points):
        raise ValueError("expected sizes above 0 in scaling")
    return Scaling(str(data["axis"]), points, _maybe(data.get("exponent")))


def _recall(path: Path, data: dict[str, Any]) -> Recall:
    curve = tuple({key: _number(value) for key, value in line.items()} for line in data["curve"])
    if not curve or any("candidates" not in line or "seconds" not in line for line in curve):
        raise ValueError("expected candidates and seconds in every entry of the curve, and one at least")
    name = f"{data['data']}, {data['split']} split"
    return Recall(path, _date(path), data["machine"], name, data["mentions"], data["entities"], curve)


def _serving(path: Path, data: dict[str, Any]) -> Serving:
    load = tuple({key: _number(value) for key, value in line.items()} for line in data["load"])
    for line in load:
        _positive(line["requests/s"]), line["clients"], line["errors"], line["p50 ms"], line["p99 ms"]
    if not load or load[0]["clients"] != 1:
        raise ValueError("expected one client in the first entry of the load")
    entities, candidates = int(_positive(data["entities"])), int(_positive(data["candidates"]))
    return Serving(path, _date(path), data["machine"], str(data["index"]), entities, candidates, load)


def _quality(path: Path, data: dict[str, Any]) -> Quality:
    models = {key: value for key, value in data.items() if isinstance(value, dict)}
    for variants in models.values():
        for metrics in variants.values():
            _number(metrics["mrr"]), metrics["hits"]["1"]
    return Quality(path, data["date"], str(data["machine"]), str(data["split"]), models)


def _date(path: Path) -> str:
    found = re.search(r"\d{4}-\d{2}-\d{2}", path.name)
    return found[0] if found else ""


def _maybe(value: Any, read: Callable[[Any], float] | None = None) -> float | None:
    return None if value is None else (read or _number)(value)


def _positive(value: Any) -> float:
    if _number(value) <= 0:
        raise ValueError(f"expected a number above 0, got {value!r}")
    return float(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value!r}")
    return float(value)


def goal(bar: str) -> float:
    """The number in a bar, ``"GOAL: met"``."""
    return _number(float(bar.partition(":")[0].replace(",", "")))


def outcome(bar: str) -> str:
    """``met``, ``missed`` or ``not measured``."""
    return bar.rpartition(": ")[2]


def machines(files: Iterable[File]) -> dict[str, Mapping[str, Any]]:
    """The machines of measured runs by a letter each."""
    found: list[Mapping[str, Any]] = []
    for file in files:
        if not isinstance(file, Quality) and _hardware(file.machine) not in map(_hardware, found):
            found.append(file.machine)
    return {chr(ord("A") + number): machine for number, machine in enumerate(found)}


def letter(machine: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> str:
    return next(name for name, other in known.items() if _hardware(other) == _hardware(machine))


def _hardware(machine: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in machine.items() if key not in ("python", "pytest-benchmark")}
