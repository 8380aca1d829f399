"""``python -m m3el_fast.info``: what the native part is and can do on this machine, or why it is not there."""

from __future__ import annotations

import argparse

from m3el_fast.ops.build import native_report


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="m3el info", description="What the native part is and can do here.").parse_args(argv)
    print(native_report())


if __name__ == "__main__":
    main()
