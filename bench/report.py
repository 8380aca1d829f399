"""One page, and the README's tables, of results files: ``python -m bench.report bench/results/*.json``.

The page is one HTML file that needs nothing else. ``--readme`` prints the README's tables in Markdown instead.
"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from bench import report_measured, report_readme
from bench.report_data import Recall, Record, Run, load
from bench.report_page import Page
from m3el_fast.errors import run_command
from m3el_fast.files import replace_file

_OUT = Path(__file__).parent / "results" / "report.html"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON in bench/results")
    parser.add_argument("--out", type=Path, default=_OUT, help="default: bench/results/report.html")
    parser.add_argument(
        "--modelled", action="store_true", help="model the GPU kernels, too (needs Triton; ten seconds)"
    )
    parser.add_argument("--readme", action="store_true", help="print the README's tables, write no page")
    args = parser.parse_args(argv)
    files = [load(path) for path in args.files]
    if args.readme:
        runs = [file for file in files if isinstance(file, Run)]
        recalls = [file for file in files if isinstance(file, Recall)]
        tables = report_readme.table(runs), report_measured.measured(runs), report_measured.recall(recalls)
        print(*filter(None, tables), sep="\n", end="")
        return
    page = Page(files, modelled() if args.modelled else [], datetime.now())
    with replace_file(args.out) as temporary:
        temporary.write_text(page.html(), encoding="utf-8")
    print(args.out)


def modelled() -> list[Record]:
    """What :mod:`bench.roofline` expects of each GPU kernel."""
    from bench import roofline, sass
    from bench.works import works

    found = [roofline.estimate(work, sass.compile_case(work.case, 90)) for work in works()]
    return [
        Record(
            one.work.name,
            "launches",
            "modelled",
            "python -m bench.roofline",
            rate=1 / one.seconds,
            share=one.limit / one.seconds,
            flop=one.work.flop,
            moved=max(one.work.stored, one.work.moved),
        )
        for one in found
    ]


if __name__ == "__main__":
    run_command(main)
