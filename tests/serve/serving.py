"""A tiny index behind a real server, in a thread of its own."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from index_cases import Case, make_case
from m3el_fast.data.layout import read_kb
from m3el_fast.index import EntityIndex
from m3el_fast.link import Linker
from m3el_fast.serve.app import create_app
from m3el_fast.serve.entities import Entities
from m3el_fast.serve.limits import Limits
from m3el_fast.serve.protocol import uvicorn_options
from m3el_fast.serve.service import Service
from m3el_fast.serve.swapping import IndexInUse

GOOD = {"mention": "Elm", "sentence": "x"}
MARKUP = '<img src=x onerror="window.hit=1"><b>Elm</b> & "inn"'


def picture(mode: str = "RGB", size: tuple[int, int] = (20, 16), kind: str = "PNG", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(out, kind, **options)
    return out.getvalue()


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass(frozen=True)
class Served:
    """Twelve entities: ``folder`` has their KB, ``index`` is their index."""

    case: Case
    folder: Path
    index: Path

    @property
    def linker(self) -> Linker:
        return Linker(self.case.model, index=EntityIndex.open(self.index))

    def service(
        self,
        kb: bool = False,
        index: Path | None = None,
        watch: float = 0,
        nil_threshold: float | None = None,
        **limits: Any,
    ) -> Service:
        entities = Entities(read_kb(self.folder, "attr") if kb else None)
        in_use = IndexInUse(self.case.model, index or self.index)
        return Service(in_use, entities, "tiny", Limits(**limits), watch, nil_threshold)

    def build(self, out: Path, rows: range = range(12)) -> EntityIndex:
        names = [MARKUP if row == 0 else f"Elm {row}" for row in rows]
        return self.case.build(out, rows, names=names)


def make_served(folder: Path) -> Served:
    case = make_case(folder / "data")
    records = json.loads((folder / "data/kb_entity.json").read_text())
    records[0]["attr"] = "<script>window.hit=1</script>"
    records[0]["desc"] = None
    records[2]["image_list"].insert(0, "gone.jpg")
    records[5]["image_list"] = ["gone.jpg"]
    (folder / "data/kb_entity.json").write_text(json.dumps(records))
    served = Served(case, folder / "data", folder / "index")
    served.build(served.index)
    return served


@contextlib.contextmanager
def running(service: Service) -> Iterator[str]:
    """The address of a server; at its end requests in hand are finished."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(create_app(service), port=port, log_level="error", **uvicorn_options(service.limits))
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()
