"""A newer index takes the place of the old one, and no request is lost; one that cannot be used does not."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from pathlib import Path

import httpx
import pytest

from m3el_fast.errors import InputError
from m3el_fast.index import EntityIndex
from m3el_fast.serve.swapping import IndexInUse
from serve.serving import Served, running
from tiny import tiny_model

BODY = {"mentions": [{"mention": "Elm", "sentence": "We saw the inn"}], "k": 100}


def until(condition: object, seconds: float = 15) -> None:
    assert callable(condition)
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_no_request_is_lost(served: Served, tmp_path: Path) -> None:
    """Entities come and go in the index's folder while clients ask: each answer is of one version."""
    index = served.build(tmp_path / "index", range(6))
    service = served.service(index=tmp_path / "index", watch=0.02)
    versions = [{f"Q{i}" for i in range(6)}, {f"Q{i}" for i in range(12)}, {f"Q{i}" for i in range(12)} - {"Q1"}]
    seen: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=address, timeout=30) as client:
            while not stop.is_set():
                answer = client.post("/link", json=BODY)
                assert answer.status_code == 200
                seen.append(versions.index({link["id"] for link in answer.json()["links"][0]}))

    with running(service) as address:
        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        try:
            until(lambda: 0 in seen)
            rows = range(6, 12)
            index = index.add(served.case.model, served.case.source(rows), ids=[f"Q{i}" for i in rows], progress=False)
            until(lambda: 1 in seen)
            index.remove(["Q1"])
            until(lambda: 2 in seen[-4:])
        finally:
            stop.set()
            for client in clients:
                client.join()
        health = httpx.get(f"{address}/healthz").json()["index"]
        assert (health["version"], health["entities"], health["problem"]) == (3, 11, None)
        assert httpx.get(f"{address}/entities/Q1").status_code == 404
    assert seen[-1] == 2 and len(seen) > 6


def test_another_folder_behind_a_link(served: Served, tmp_path: Path) -> None:
    served.build(tmp_path / "a", range(3))
    served.build(tmp_path / "b", range(4))
    (tmp_path / "now").symlink_to("a")
    index = IndexInUse(served.case.model, tmp_path / "now")
    first = index.linker
    index.look()
    assert index.linker is first
    (tmp_path / "next").symlink_to("b")
    os.replace(tmp_path / "next", tmp_path / "now")
    index.look()
    assert (len(first.index), len(index.linker.index)) == (3, 4)
    shutil.rmtree(tmp_path / "a")
    assert len(first.link([{"mention": "Elm", "sentence": "x"}])[0]) == 3  # who holds it goes on with it


def test_an_index_that_cannot_be_used(served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    served.build(tmp_path / "good", range(3))
    served.build(tmp_path / "new", range(4))
    place = tmp_path / "index"
    shutil.copytree(tmp_path / "good", place)
    index = IndexInUse(served.case.model, place)
    linker = index.linker

    def refused(message: str) -> None:
        caplog.clear()
        index.look()
        index.look()  # nothing has changed: it is not tried again
        assert index.linker is linker
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert message in caplog.text
        assert index.problem is not None and str(tmp_path) not in index.problem
        assert len(linker.link([{"mention": "Elm", "sentence": "x"}])[0]) == 3

    def replaced(folder: Path) -> None:
        shutil.rmtree(place)
        shutil.copytree(folder, place)

    manifest = tmp_path / "new/manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace("visual", "Visual", 1))
    replaced(tmp_path / "new")
    refused("an undamaged manifest")
    manifest.write_text(text)
    replaced(tmp_path / "new")
    os.truncate(next(place.glob("items-*")), 100)
    refused("100")
    shutil.rmtree(place)
    refused("an entity index, a folder with manifest.json")
    other = tiny_model(served.case.config, seed=7)
    EntityIndex.build(other, served.case.source(range(4)), place, precision="fp32", progress=False)
    refused("an index of this model")
    replaced(tmp_path / "new")
    index.look()
    assert (len(index.linker.index), index.problem) == (4, None)


def test_an_old_problem_is_over(served: Served, tmp_path: Path) -> None:
    served.build(tmp_path / "index", range(3))
    index = IndexInUse(served.case.model, tmp_path / "index")
    linker = index.linker
    manifest = tmp_path / "index/manifest.json"
    text = manifest.read_text()
    manifest.write_text("{")
    index.look()
    assert index.problem is not None
    manifest.write_text(text)
    index.look()
    assert index.problem is None and index.linker is linker


def test_no_index_at_the_start(served: Served, tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match=f"{folder}: expected an entity index"):
            IndexInUse(served.case.model, folder)
