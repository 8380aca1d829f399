"""Numbers as text, in the report and in comparisons."""

from __future__ import annotations

import math
from typing import Any


def rate_text(rate: float) -> str:
    """Three digits: 1.23 M, 684,000, 87.3."""
    for size, unit in ((1e9, " G"), (1e6, " M")):
        if rate >= size:
            return f"{significant(rate / size)}{unit}"
    return significant(rate)


def seconds_text(seconds: float) -> str:
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size:
            return f"{significant(seconds / size)} {unit}"
    return f"{significant(seconds * 1e9)} ns"


def bytes_text(count: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{significant(count / size)} {unit}"
    return f"{significant(count / 1e3)} kB"


def significant(value: float, digits: int = 3) -> str:
    """Rounded to so many digits, without an exponent: 0.0123, 4.4, 17,600; trailing zeros of a fraction go."""
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    text = f"{round(value, places):,.{max(places, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def plain(value: Any) -> str:
    """Any fact as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ", ".join(map(plain, value)) if isinstance(value, (list, tuple)) else str(value)
    return f"{value:,}" if isinstance(value, int) else significant(value, 4) if abs(value) >= 1e-4 else f"{value:.3g}"
