"""``python -m m3el_fast.serve CHECKPOINT --index DIR``: link over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import copy
import gc
import math
from pathlib import Path

from m3el_fast.adapters.extras import require
from m3el_fast.calibration import check_threshold, chosen_threshold
from m3el_fast.checkpoint import index_of
from m3el_fast.data.layout import KnowledgeBase, read_kb
from m3el_fast.devices import add_device_option, named_device
from m3el_fast.errors import InputError, run_command
from m3el_fast.models import fetch_checkpoint, load_model
from m3el_fast.serve.limits import Limits


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    for option, value in (
        ("--timeout", args.timeout),
        ("--max-requests", args.max_requests),
        ("--max-mb", args.max_mb),
    ):
        if not 0 < value < math.inf:
            raise InputError(option, "a positive number", value)
    if not args.watch >= 0:
        raise InputError("--watch", "seconds, or 0", args.watch)
    if not 0 <= args.port <= 65_535:
        raise InputError("--port", "a number from 0 (any that is free) to 65535", args.port)
    check_threshold("--nil-threshold", args.nil_threshold)
    require("fastapi", "serve")
    require("uvicorn", "serve")
    require("httptools", "serve")
    require("python_multipart", "serve")

    import uvicorn
    from uvicorn.config import LOGGING_CONFIG

    from m3el_fast.serve.app import create_app
    from m3el_fast.serve.entities import Entities
    from m3el_fast.serve.protocol import uvicorn_options
    from m3el_fast.serve.service import Service
    from m3el_fast.serve.swapping import IndexInUse

    _require_address(args.host, args.port)
    place = named_device(args.device)
    own = args.index is None
    checkpoint = fetch_checkpoint(args.checkpoint, with_index=own)
    folder = index_of(checkpoint) if own else Path(args.index)
    if folder is None:
        hint = f"python -m m3el_fast.index build {args.checkpoint} --kb DIR --out INDEX makes one"
        raise InputError("--index", "the folder of an index", "none, and the checkpoint comes without", hint)
    model = load_model(checkpoint).to(place)
    chosen_threshold("--nil-threshold", model.calibration, args.nil_threshold)
    index = IndexInUse(model, folder)
    entities = Entities(_kb(args.kb))
    limits = Limits(body=int(args.max_mb * 1e6), seconds=args.timeout, requests=args.max_requests)
    service = Service(index, entities, Path(args.checkpoint).absolute().name, limits, args.watch, args.nil_threshold)
    log = copy.deepcopy(LOGGING_CONFIG)
    log["loggers"]["m3el_fast"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    print(f"linking to {len(index.linker.index)} entities of {index.path}", flush=True)
    gc.collect()
    gc.freeze()  # what is there now stays: no later collection goes through it, 0.3 s in which nothing else runs
    try:
        options = uvicorn_options(limits)
        uvicorn.run(create_app(service), host=args.host, port=args.port, log_config=log, **options)
    finally:
        gc.unfreeze()


def _require_address(host: str, port: int) -> None:
    """Raises InputError: no server can listen there; said before the model and the index are loaded."""

    async def listen() -> None:
        (await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)).close()

    try:
        asyncio.run(listen())
    except OSError as problem:
        raise InputError("--host, --port", "an address to listen at", f"{host}, {port}: {problem.strerror}") from None


def _parser() -> argparse.ArgumentParser:
    default = Limits()
    parser = argparse.ArgumentParser(
        prog="m3el serve", description="Link mentions to the entities of an index over HTTP."
    )
    parser.add_argument("checkpoint", help="checkpoint folder or Hub name")
    parser.add_argument("--index", metavar="DIR", help="index to link to (default: the checkpoint's)")
    parser.add_argument("--kb", metavar="DIR", help="KB in the MIMIC layout: shows entities' texts and pictures")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1; 0.0.0.0 = all)")
    parser.add_argument("--port", type=int, default=8000, help="(default 8000)")
    seconds = "look so often for a newer index, which then takes the place of this one; 0 = never (default 5)"
    parser.add_argument("--watch", metavar="SECONDS", type=float, default=5.0, help=seconds)
    timeout = f"that a request may take (default {default.seconds:g})"
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=default.seconds, help=timeout)
    requests = f"requests in hand, further ones are refused (default {default.requests})"
    parser.add_argument("--max-requests", metavar="N", type=int, default=default.requests, help=requests)
    size = f"megabytes of a request (default {default.body / 1e6:g})"
    parser.add_argument("--max-mb", metavar="MB", type=float, default=default.body / 1e6, help=size)
    dropped = "a mention whose best entity is less probable has none, null (default: the checkpoint's; 0: never)"
    parser.add_argument("--nil-threshold", metavar="P", type=float, help=dropped)
    add_device_option(parser)
    return parser


def _kb(folder: str | None) -> KnowledgeBase | None:
    return None if folder is None else read_kb(Path(folder), "attr")


if __name__ == "__main__":
    run_command(main)
