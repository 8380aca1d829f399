"""The report's tables of the server under load."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bench.report_data import Serving
from bench.report_figures import NOT_MEASURED, code
from bench.report_text import rate_text, significant

_HEADS = ("clients", "requests/s", "x 1 client", "p50 ms", "p99 ms", "errors")


def serving(files: Sequence[Serving]) -> str:
    """Throughput and latency by the number of clients, for each file."""
    command = code("python -m bench.serve_load CHECKPOINT --index INDEX")
    return "".join(_card(file, command) for file in files) or NOT_MEASURED.format(command)


def _card(file: Serving, command: str) -> str:
    heads = "".join(f'<th class="n">{name}</th>' for name in _HEADS)
    rows = ""
    for line in file.load:
        first = file.load[0]["requests/s"]
        values = (
            f"{line['clients']:g}",
            rate_text(line["requests/s"]),
            significant(line["requests/s"] / first),
            significant(line["p50 ms"]),
            significant(line["p99 ms"]),
            f"{line['errors']:g}",
        )
        cells = "".join(f'<td class="n">{value}</td>' for value in values)
        rows += f"<tr>{cells}</tr>"
    stage = "all, exact" if file.candidates == file.entities else f"{file.candidates:,} candidates, two stages"
    return (
        f'<div class="card" style="overflow-x:auto"><h3>{escape(file.index)}: {file.entities:,} entities ({stage})</h3>'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        f'<p class="note">One mention a request, every second with a picture; clients ask again once answered; '
        f"server and clients on one machine. {escape(file.path.name)}, {escape(file.date)} · {command}</p></div>"
    )
