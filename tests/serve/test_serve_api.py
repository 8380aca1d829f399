"""The server's answers are the linker's."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import m3el_fast
from m3el_fast.calibration import Calibration
from m3el_fast.index import EntityIndex
from m3el_fast.link import Links
from m3el_fast.serve.app import Json
from serve.serving import GOOD, MARKUP, Served, coded, picture, running

SENTENCES = ["We saw the inn number 0", "A mill by the water", "School number 3 — \u2028 und so weiter", ""]


def answered(links: list[Links]) -> dict[str, Any]:
    """The server's answer that tells ``links``."""
    return {"links": links, "entities": [one.entity for one in links]}


def near(found: Any, expected: Any) -> bool:
    """The same but for the last bits of numbers, which differ between batches of other sizes."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(near(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(near, found, expected))
    return found == (pytest.approx(expected, rel=1e-5, abs=1e-5) if isinstance(expected, float) else expected)


def mentions(folder: Path, count: int = 8) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Mentions for the linker, with image files in ``folder``, and the same for the server."""
    files = {
        "a.png": picture("RGBA"),
        "b.jpg": picture(kind="JPEG"),
        "c.webp": picture("RGB", (7, 40), "WEBP"),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    local, sent = [], []
    for i in range(count):
        record: dict[str, Any] = {"mention": f"Elm {i % 3}", "sentence": SENTENCES[i % 4]}
        if i % 3 == 1:
            record["candidates"] = ["Q3", "Q9", "Q8", "Q3"]
        name = [None, *files][i % 4]
        image = {} if name is None else {"image": str(folder / name)}
        data = "" if name is None else ("data:image/png;base64," if i % 2 else "") + coded(files[name])
        local.append(record | image)
        sent.append(record | ({"image": data} if data else {}))
    return local, sent


# -- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"k": 3}, {"k": 100}, {"k": 2, "candidates": 4}], ids=str)
def test_links_are_the_linkers(options: dict[str, int], served: Served, client: httpx.Client, tmp_path: Path) -> None:
    local, sent = mentions(tmp_path)
    answer = client.post("/link", json={"mentions": sent, **options})
    assert answer.status_code == 200, answer.text
    assert near(answer.json(), answered(served.linker.link(local, **options)))


def test_probabilities_are_the_linkers(
    served: Served, client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"temperature": 0.7, "nil_score": 9.0, "data": "x", "entities": 12, "mentions": 9, "nil": 3}
    local, sent = mentions(tmp_path)
    monkeypatch.setattr(served.case.model, "calibration", Calibration(nil_threshold=0.0, **values))
    best = sorted(links[0]["probability"] for links in served.linker.link(local))
    between = (best[3] + best[4]) / 2
    monkeypatch.setattr(served.case.model, "calibration", Calibration(nil_threshold=between, **values))
    found = client.post("/link", json={"mentions": sent}).json()
    assert near(found, answered(served.linker.link(local)))
    assert found["entities"].count(None) == 4
    assert all(0 <= link["probability"] <= 1 for links in found["links"] for link in links)


def test_a_nil_threshold_of_a_request(
    served: Served, address: str, client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests with different ones are linked together."""
    values = {"temperature": 0.7, "nil_score": 9.0, "data": "x", "entities": 12, "mentions": 9, "nil": 3}
    monkeypatch.setattr(served.case.model, "calibration", Calibration(nil_threshold=0.0, **values))
    local, sent = mentions(tmp_path)
    expected = served.linker.link(local)
    best = sorted(links[0]["probability"] for links in expected)
    thresholds = [None, 0, (best[3] + best[4]) / 2, 1, 1.0]

    def ask(threshold: float | None) -> Any:
        return httpx.post(f"{address}/link", json={"mentions": sent, "nil_threshold": threshold}, timeout=30).json()

    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(ask, thresholds))
    assert [answer["entities"].count(None) for answer in found] == [0, 0, 4, 8, 8]
    assert all(near(answer["links"], expected) for answer in found)
    form = client.post("/link", data=GOOD | {"nil_threshold": "1"}, files={"image": b""}).json()
    assert form["entities"] == [None]


def test_a_nil_threshold_of_the_server(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"temperature": 0.7, "nil_score": 9.0, "data": "x", "entities": 12, "mentions": 9, "nil": 3}
    monkeypatch.setattr(served.case.model, "calibration", Calibration(nil_threshold=0.0, **values))
    with running(served.service(nil_threshold=1.0)) as address:
        assert httpx.get(f"{address}/healthz").json()["nil_threshold"] == 1.0
        assert httpx.post(f"{address}/link", json={"mentions": [GOOD]}).json()["entities"] == [None]
        best = httpx.post(f"{address}/link", json={"mentions": [GOOD], "nil_threshold": 0}).json()
        assert best["entities"] == [best["links"][0][0]["id"]]


def test_a_single_mention_is_equal_bit_by_bit(served: Served, client: httpx.Client, tmp_path: Path) -> None:
    for local, sent in zip(*mentions(tmp_path), strict=True):
        answer = client.post("/link", json={"mentions": [sent], "k": 12}).json()
        assert answer == answered(served.linker.link([local], 12))


def test_a_form(served: Served, client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    mention = {"mention": "Elm", "sentence": "We saw the inn — number 0"}
    expected = served.linker.link([mention | {"image": str(tmp_path / "a.png")}], 3)
    sent = client.post("/link", data=mention | {"k": "3"}, files={"image": ("../../etc/passwd", picture())})
    assert sent.json() == answered(expected)
    for file in ('; filename=""\r\nContent-Type: application/octet-stream', ""):  # a browser's without a file; curl's
        parts = [f'name="{name}"\r\n\r\n{value}' for name, value in (mention | {"candidates": ""}).items()]
        parts.append(f'name="image"{file}\r\n\r\n')
        body = "".join(f"--a\r\nContent-Disposition: form-data; {part}\r\n" for part in parts) + "--a--\r\n"
        answer = client.post("/link", content=body, headers={"content-type": "multipart/form-data; boundary=a"})
        assert answer.json() == answered(served.linker.link([mention]))


def test_many_clients_at_once(served: Served, address: str, tmp_path: Path) -> None:
    local, sent = mentions(tmp_path, 24)
    expected: list[Any] = [served.linker.link([one], 3 + i % 2) for i, one in enumerate(local)]

    def ask(i: int) -> Any:
        return httpx.post(f"{address}/link", json={"mentions": [sent[i]], "k": 3 + i % 2}, timeout=30).json()["links"]

    with ThreadPoolExecutor(12) as pool:
        assert all(map(near, pool.map(ask, range(24)), expected))


def test_new_fields_of_the_linker_appear(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    service = served.service()
    linker = service.index.linker
    answers = linker._answers

    def more(best: Any) -> Any:
        return [[link | {"new": 0.5} for link in links] for links in answers(best)]

    monkeypatch.setattr(linker, "_answers", more)
    with running(service) as address:
        found = httpx.post(f"{address}/link", json={"mentions": [{"mention": "Elm", "sentence": ""}]}).json()
    assert {link["new"] for link in found["links"][0]} == {0.5}


def test_json_is_never_broken() -> None:
    content = {"a": [float("nan"), {"b": float("-inf")}, 1.5], "half": "\ud800"}
    assert json.loads(Json(content).body) == {"a": [None, {"b": None}, 1.5], "half": "\ud800"}


def test_an_index_has_all_that_is_asked_for(served: Served, client: httpx.Client) -> None:
    found = client.post("/link", json={"mentions": [GOOD], "k": 100}).json()["links"][0]
    assert sorted(link["id"] for link in found) == sorted(EntityIndex.open(served.index).row)


# -- entities and health ----------------------------------------------------------------------------------------------


def test_an_entity(client: httpx.Client) -> None:
    assert client.get("/entities/Q0").json() == {
        "id": "Q0",
        "name": MARKUP,
        "attr": "<script>window.hit=1</script>",
        "desc": None,
        "image": "/entities/Q0/image",
    }
    found = client.get("/entities/Q11").json()
    assert (found["desc"], found["image"]) == ("A white mill", None)


def test_an_entity_without_a_kb(served: Served) -> None:
    with running(served.service()) as address:
        found = httpx.get(f"{address}/entities/Q1").json()
        assert found == {"id": "Q1", "name": "Elm 1", "attr": None, "desc": None, "image": None}
        assert httpx.get(f"{address}/entities/Q1/image").status_code == 404
        assert httpx.get(f"{address}/healthz").json()["kb"] is False


def test_pictures_of_entities(client: httpx.Client) -> None:
    answer = client.get("/entities/Q2/image")  # of its second file; the first is gone
    assert answer.headers["content-type"] == "image/jpeg"
    image = Image.open(io.BytesIO(answer.content))
    assert image.size == (20, 16)
    assert image.getpixel((5, 5)) == pytest.approx((0, 0, 255), abs=12)  # blue, through JPEG twice


@pytest.mark.parametrize(
    "path",
    [
        "/entities/Q99",
        "/entities/Q99/image",
        "/entities/Q11/image",
        "/entities/Q5/image",
        "/entities/..%2F..%2Fetc%2Fpasswd",
        "/entities/..%2Fkb_image%2Fred.jpg/image",
        "/entities/%00/image",
        "/entities/%ff",
        "/entities/",
        "/kb_entity.json",
        "/page/page.js",
        "/..%2Fapp.py",
    ],
)
def test_what_is_not_there(path: str, client: httpx.Client) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"].keys() == {"where", "expected", "got"}
    assert str(Path.cwd()) not in answer.text


def test_an_id_with_a_slash(served: Served, tmp_path: Path) -> None:
    index = served.case.build(tmp_path / "index", range(2), ids=["a/b", "é ?#%"])
    with running(served.service(index=index.path)) as address:
        assert httpx.get(f"{address}/entities/a%2Fb").json()["id"] == "a/b"
        assert httpx.get(f"{address}/entities/%C3%A9%20%3F%23%25").json()["id"] == "é ?#%"


def test_health(client: httpx.Client, served: Served) -> None:
    found = client.get("/healthz").json()
    index = found.pop("index")
    assert found == {
        "ready": True,
        "version": m3el_fast.__version__,
        "model": "m3el",
        "checkpoint": "tiny",
        "kb": True,
        "nil_threshold": None,
        "requests": 0,
    }
    assert (index["name"], index["version"], index["entities"], index["problem"]) == ("index", 1, 12, None)


def test_the_name_of_the_folder_in_which_the_server_runs(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(served.index)
    assert served.service(index=Path()).health()["index"]["name"] == "index"


def test_the_pages(client: httpx.Client) -> None:
    for path, kind, word in (
        ("/", "text/html; charset=utf-8", "Link a mention"),
        ("/page.js", "text/javascript; charset=utf-8", "selectionStart"),
        ("/page.css", "text/css; charset=utf-8", "prefers-color-scheme"),
        ("/docs", "text/html; charset=utf-8", "MentionIn"),
    ):
        answer = client.get(path)
        assert (answer.headers["content-type"], word in answer.text) == (kind, True)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in answer.text


@pytest.mark.parametrize("path", ["/", "/page.js", "/healthz", "/entities/Q0", "/entities/Q2/image", "/entities/Q99"])
def test_head(path: str, client: httpx.Client) -> None:
    """Load balancers ask so whether a server is up."""
    full, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (full.status_code, b"")
    assert head.headers["content-length"] == str(len(full.content))
    assert client.head("/link").status_code == 405
