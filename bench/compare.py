"""What became slower, or needs more memory: ``python -m bench.compare OLD.json NEW.json``.

Both are results files of pytest-benchmark, one session each. Benchmarks are matched by the name that they record; of
several of one name the last counts. Compared is the median time per item (pair, step, ...), and

- slower:      new > old x (1 + the larger of both spreads + tolerance), spread = interquartile range / median;
- more memory: new peak > old peak x (1 + tolerance) + 8 MB, by about which the peak of a process varies.

Either is a regression, and the exit status 1; a benchmark with one round on a side has no spread and one that worked
on another number of items is another benchmark: both are listed and not judged. Nor is anything where the machines
differ in CPU, cores, instruction sets, memory, threads or GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.report_data import Record, Run, load_run
from bench.report_text import bytes_text, plain, seconds_text
from m3el_fast.errors import run_command

_HARDWARE = ("cpu", "cores", "isa", "memory_gb", "threads", "gpu")
_PEAK_NOISE = 8e6  # bytes


@dataclass(frozen=True)
class Comparison:
    """One benchmark in two sessions; the properties are None where there is nothing to compare.

    Attributes:
        tolerance: share of the old value that is no regression, beyond the spread.
    """

    old: Record
    new: Record
    tolerance: float

    @property
    def incomparable(self) -> str:
        """Why times are not judged, or empty."""
        if self.old.rate is None or self.new.rate is None:
            return "not measured"
        if self.old.unit != self.new.unit or _items(self.old) != _items(self.new):
            return f"other work: {_items(self.old):,} {self.old.unit}, then {_items(self.new):,} {self.new.unit}"
        return "one round, no spread" if 1 in (self.old.rounds, self.new.rounds) else ""

    @property
    def ratio(self) -> float | None:
        """New time / old time per item: above 1 is slower."""
        if self.old.rate is None or self.new.rate is None or self.old.unit != self.new.unit:
            return None
        return self.old.rate / self.new.rate

    @property
    def bound(self) -> float:
        """The largest ratio that is no regression."""
        return 1 + max(self.old.spread or 0.0, self.new.spread or 0.0) + self.tolerance

    @property
    def slower(self) -> bool:
        return not self.incomparable and self.ratio is not None and self.ratio > self.bound

    @property
    def more_memory(self) -> bool:
        if self.old.peak is None or self.new.peak is None or self.incomparable.startswith("other work"):
            return False
        return self.new.peak > self.old.peak * (1 + self.tolerance) + _PEAK_NOISE

    def text(self, judged: bool) -> str:
        parts = []
        if self.ratio is not None:
            parts.append(f"{_median(self.old)} -> {_median(self.new)}: time x {self.ratio:.3f}")
        if self.old.peak is not None and self.new.peak is not None:
            parts.append(f"peak {bytes_text(self.old.peak)} -> {bytes_text(self.new.peak)}")
        if self.incomparable:
            parts.append(f"not judged ({self.incomparable})")
        elif judged and self.slower:
            parts.append(f"SLOWER than x {self.bound:.3f}")
        if judged and self.more_memory:
            parts.append("MORE MEMORY")
        return f"{self.new.name}\n    {', '.join(parts)}"


def _items(record: Record) -> int:
    return round((record.rate or 0.0) * (record.median or 0.0))


def _median(record: Record) -> str:
    spread = "" if record.spread is None else f" (spread {100 * record.spread:.1f}%)"
    return f"{seconds_text(record.median or 0.0)}{spread}"


def compare(old: Run, new: Run, tolerance: float) -> list[Comparison]:
    """Benchmarks of both, in the order of ``new``."""
    before = old.by_name()
    return [Comparison(before[name], record, tolerance) for name, record in new.by_name().items() if name in before]


def differences(old: Mapping[str, object], new: Mapping[str, object], keys: tuple[str, ...]) -> list[str]:
    """What of a machine's description differs, as text."""
    return [f"{key}: {plain(old.get(key))} -> {plain(new.get(key))}" for key in keys if old.get(key) != new.get(key)]


def report(old: Run, new: Run, tolerance: float) -> tuple[str, bool]:
    """The text, and whether there is a regression."""
    found = compare(old, new, tolerance)
    lines = [f"{old.path} ({old.date}) -> {new.path} ({new.date})"]
    machine = differences(old.machine, new.machine, _HARDWARE)
    if machine:
        lines += ["*** DIFFERENT MACHINES, nothing is judged ***", *(f"    {line}" for line in machine)]
    software = tuple(key for key in {**old.machine, **new.machine} if key not in _HARDWARE)
    lines += [f"other {line}" for line in differences(old.machine, new.machine, software)]
    lines += [one.text(judged=not machine) for one in found]
    names_old, names_new = old.by_name(), new.by_name()
    lines += [f"only in {old.path.name}: {name}" for name in names_old if name not in names_new]
    lines += [f"only in {new.path.name}: {name}" for name in names_new if name not in names_old]
    bad = [] if machine else [one for one in found if one.slower or one.more_memory]
    lines.append(f"{len(found)} compared, {len(bad)} regressions")
    return "\n".join(lines), bool(bad)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.05, help="default: 0.05")
    args = parser.parse_args(argv)
    text, regressed = report(load_run(args.old), load_run(args.new), args.tolerance)
    print(text)
    if regressed:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
