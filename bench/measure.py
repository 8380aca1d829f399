"""One measurement: timed by pytest-benchmark, compared with what was timed before, and put down for the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Measure:
    """Times calls and records what they mean.

    Args:
        benchmark: pytest-benchmark's fixture of the test, used once; records: median seconds by name, of this session.
        results: lines of the table at the end.
    """

    def __init__(self, benchmark: Any, records: dict[str, float], results: list[dict[str, Any]]) -> None:
        self._benchmark, self._records, self._results = benchmark, records, results

    def time(self, call: Callable[[], object], rounds: int, *, warm: bool = True) -> None:
        """``rounds`` timed calls after one to warm up; where timing is off, one call.

        Args:
            warm: False: the call's shapes have just run, in its process.
        """
        self._benchmark.pedantic(call, rounds=rounds, warmup_rounds=int(warm))

    def record(
        self,
        name: str,
        *,
        items: int,
        unit: str,
        peers: tuple[str, ...] = (),
        bars: dict[str, float] | None = None,
        limit: float | None = None,
        peak: int | None = None,
        flop: float | None = None,
        moved: float | None = None,
        **facts: Any,
    ) -> float | None:
        """Put down what was timed; returns its median seconds per item, None where timing is off.

        Args:
            name: of what was timed; items: how many ``unit`` one call works on.
            peers: names of earlier records to be compared with (those that ran).
            bars: what the issue asks: ``"<unit>/s"`` or a peer's name -> at least that rate or ratio;
                ``"peak MB"`` -> at most.
            limit: least seconds per item by count; peak: bytes.
            flop, moved: FLOP and bytes of main memory that an item needs, counted, the same for every form of a
                computation (``limits.py`` says how).
            facts: anything else worth keeping; ``ours`` = True: not a peer, although others are compared with it.
        """
        line: dict[str, Any] = {"name": name, "unit": unit, **facts}
        if flop is not None and moved is not None:
            line |= {"flop": flop, "moved": moved}
        if peak is not None:
            line["peak MB"] = peak / 1e6
        stats = self._benchmark.stats
        seconds = None
        if stats is not None:
            seconds = stats.stats.median / items
            self._records[name] = seconds
            line |= {
                f"{unit}/s": 1 / seconds,
                "spread": stats.stats.iqr / stats.stats.median,
                "rounds": stats.stats.rounds,
            }
            line |= {f"x {peer}": self._records[peer] / seconds for peer in peers if peer in self._records}
            if limit is not None:
                line["share of limit"] = limit / seconds
        line["bars"] = {key: _bar(key, bar, line) for key, bar in (bars or {}).items()}
        self._benchmark.extra_info.update(line)
        self._results.append(line)
        return seconds


def _bar(key: str, bar: float, line: dict[str, Any]) -> str:
    value = line.get(key, line.get(f"x {key}"))
    if value is None:
        return f"{bar:,.4g}: not measured"
    met = value <= bar if key in ("peak MB", "open seconds") else value >= bar
    return f"{bar:,.4g}: {'met' if met else 'missed'}"


def table(lines: list[dict[str, Any]]) -> str:
    """One paragraph per measurement."""
    return "\n".join(f"{line['name']}\n    " + ", ".join(_fields(line)) for line in lines)


def _fields(line: dict[str, Any]) -> list[str]:
    fields = []
    for key, value in line.items():
        if key == "bars":
            fields += [f"bar {name} {text}" for name, text in value.items()]
        elif key == "scaling":
            fields.append(f"grows with {value['axis']} to the power of {value['exponent']:.2f}")
        elif key not in ("name", "unit"):
            fields.append(f"{key} {value:,.4g}" if isinstance(value, (int, float)) else f"{key} {value}")
    return fields
