"""``m3el COMMAND ...`` and ``python -m m3el_fast COMMAND ...``: the same as ``python -m m3el_fast.COMMAND ...``."""

from __future__ import annotations

import runpy
import sys

from m3el_fast import __version__
from m3el_fast.errors import run_command

COMMANDS = {
    "train": "train a model; without arguments, on the generated sample set",
    "evaluate": "rank a split's mentions against the whole knowledge base",
    "calibrate": "fit probabilities to a checkpoint's dev split",
    "link": "link mentions of a JSON-lines file to entities",
    "serve": "link over HTTP, with a web page to try it",
    "info": "what the native part is and can do on this machine",
    "index": "make an index of a knowledge base, change it, look at it",
    "hub": "put a checkpoint, and its index, on the Hugging Face Hub",
    "data": "make a data set of your own files, check one, or write the sample set",
}


def main() -> None:
    """Run the command that the first argument names; without one, or with an unknown one, list them (status 2)."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        sys.argv = [f"m3el {arguments[0]}", *arguments[1:]]
        module = f"m3el_fast.{arguments[0]}"
        run_command(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))  # Ctrl-C in its imports, too
        return
    if arguments == ["--version"]:
        print(f"m3el_fast {__version__}")
        return
    width = max(map(len, COMMANDS))
    commands = "".join(f"  {name:{width}}  {text}\n" for name, text in COMMANDS.items())
    usage = f"usage: m3el COMMAND ...\n\n{commands}\n`m3el COMMAND --help` says more.\n"
    if arguments in (["-h"], ["--help"]):
        print(usage, end="")
        return
    got = f"unknown command {arguments[0]!r}" if arguments else "no command"
    print(f"{usage}\nerror: {got}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
