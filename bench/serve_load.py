"""How many requests a server answers, and how fast, with 1, 8 and 32 clients that ask again once they are answered.

``python -m bench.serve_load CHECKPOINT --index DIR`` starts ``python -m m3el_fast.serve`` in a process of its own,
sends single mentions (names of the index's entities in a sentence; every second one with a picture of 320 x 240
pixels), prints latency and throughput, and writes them to a JSON file.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import math
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bench import machine
from m3el_fast.errors import InputError, run_command
from m3el_fast.files import replace_file, require_file_target
from m3el_fast.index import EntityIndex

CLIENTS = (1, 8, 32)
_MENTIONS = 256
_WARM = 1.0  # seconds at the beginning of each measurement that do not count
_GOOD = b"HTTP/1.1 200 OK"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--index", metavar="DIR", required=True)
    parser.add_argument("--candidates", metavar="C", type=int, help="two stages (default: all entities, exact)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement (default 15)")
    parser.add_argument("--output", type=Path, help="JSON file (default: in bench/results, by the index's name)")
    args = parser.parse_args(argv)
    if not 0 < args.seconds < math.inf:
        raise InputError("--seconds", "a positive number", args.seconds)
    index = EntityIndex.open(args.index)
    stage = "" if args.candidates is None else f"-{args.candidates}"
    name = f"serve-{Path(args.index).resolve().name.lower()}{stage}-{time.strftime('%Y-%m-%d')}.json"
    output = args.output or Path(__file__).parent / "results" / name
    require_file_target(output)
    bodies = requests(index, args.candidates)
    lines = []
    with server(args.checkpoint, args.index) as port:
        for clients in CLIENTS:
            line = asyncio.run(load(port, bodies, clients, args.seconds))
            if lines:
                line["x 1 client"] = line["requests/s"] / lines[0]["requests/s"]
            lines.append(line)
            print(", ".join(f"{key} {value:,.4g}" for key, value in line.items()))
    record = {
        "machine": machine.describe(),
        "index": Path(args.index).resolve().name,
        "entities": len(index),
        "model": index.manifest.model,
        "candidates": args.candidates or len(index),
        "load": lines,
    }
    with replace_file(output) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{len(index)} entities: {output}")


def requests(index: EntityIndex, candidates: int | None) -> list[bytes]:
    """Whole HTTP requests of single mentions."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(index.rows, (_MENTIONS,), generator=generator)
    made = []
    for number, name in enumerate(index.names.gather(rows)):
        mention: dict[str, Any] = {"mention": name, "sentence": f"In the evening we read about {name} in the paper."}
        if number % 2:
            pixels = torch.randint(256, (12, 16, 3), dtype=torch.uint8, generator=generator)
            file = io.BytesIO()
            Image.fromarray(pixels.numpy()).resize((320, 240)).save(file, "JPEG")
            mention["image"] = base64.b64encode(file.getvalue()).decode()
        content = {"mentions": [mention], "k": 10} | ({} if candidates is None else {"candidates": candidates})
        body = json.dumps(content).encode()
        head = (
            f"POST /link HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        made.append(head.encode() + body)
    return made


@contextmanager
def server(checkpoint: str, index: str) -> Iterator[int]:
    """The port of a server that is ready.

    Raises:
        InputError: it ended, at its start or while it was asked.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "m3el_fast.serve", checkpoint, "--index", index, "--port", str(port)]
    with tempfile.TemporaryFile("w+") as said:  # a pipe that nobody reads would stop the server once it is full
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        try:
            while not _is_up(port):
                if process.poll() is not None:
                    raise ConnectionError
                time.sleep(0.2)
            yield port
        except (ConnectionError, asyncio.IncompleteReadError):
            process.terminate()
            status = process.wait()
            said.seek(0)
            got = f"one that ended ({status}): {said.read().strip()[-2000:]}"
            raise InputError("python -m m3el_fast.serve", "a server that answers", got) from None
        finally:
            process.terminate()
            process.wait()


def _is_up(port: int) -> bool:
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:
            return False


async def load(port: int, bodies: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Requests a second, their latency in milliseconds, and errors: of all answers that come within ``seconds``, once
    each client was answered and a second is over. Errors count neither as requests nor in the latency.

    Raises:
        InputError: the server refuses such requests, or two answers take longer than ``seconds``.
    """
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(clients)]
    starts = [37 * number for number in range(clients)]  # not all of them ask the same at the same time

    async def ask(number: int, place: int) -> tuple[bytes, bytes]:
        reader, writer = connections[number]
        writer.write(bodies[place % len(bodies)])
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return head.split(b"\r\n")[0], await reader.readexactly(int(length.split(b":")[1]))

    for status, answer in await asyncio.gather(*map(ask, range(clients), starts)):
        if status != _GOOD:
            raise InputError("python -m m3el_fast.serve", "an answer", f"{status.decode()}: {answer.decode()[:200]}")
    start = time.perf_counter() + _WARM
    taken: list[float] = []
    errors = 0

    async def client(number: int) -> None:
        nonlocal errors
        for place in itertools.count(starts[number] + 1):
            asked = time.perf_counter()
            status, _ = await ask(number, place)
            answered = time.perf_counter()
            if answered >= start + seconds:
                return
            if answered >= start and status == _GOOD:
                taken.append(answered - asked)
            elif answered >= start:
                errors += 1

    await asyncio.gather(*map(client, range(clients)))
    for _, writer in connections:
        writer.close()
    if len(taken) < 2:
        raise InputError("--seconds", "a time in which two requests are answered", f"{seconds:g}")
    centiles = statistics.quantiles(taken, n=100, method="inclusive")
    return {
        "clients": clients,
        "requests": len(taken),
        "errors": errors,
        "requests/s": len(taken) / seconds,
        "p50 ms": 1e3 * centiles[49],
        "p99 ms": 1e3 * centiles[98],
    }


if __name__ == "__main__":
    run_command(main)
