"""``python -m m3el_fast.info``: what the native part and the Triton kernels are here, or why they are not there."""

from __future__ import annotations

import argparse

from m3el_fast.ops import gpu
from m3el_fast.ops.build import native_report


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="m3el info", description="What the kernels are and can do here.").parse_args(argv)
    print(native_report())
    print(gpu.report())


if __name__ == "__main__":
    main()
