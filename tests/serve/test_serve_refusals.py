"""Whatever cannot be answered gets a status and one error."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import httpx
import pytest

from m3el_fast.serve.limits import CANDIDATES, MENTIONS, SENTENCE, K
from serve.serving import GOOD, coded, picture

BAD: dict[str, tuple[Any, int, str]] = {
    "no-json": ("{", 400, "body: JSON"),
    "deep": ('{"mentions":' + "[" * 100_000, 400, "body: JSON"),
    "number": ('{"k": ' + "9" * 5000 + "}", 400, "body: JSON"),
    "utf-8": (b'{"mentions": "\xff"}', 400, "body: JSON"),
    "a-list": ([], 422, "body: an object"),
    "nothing": ({}, 422, "mentions: a value; no such field"),
    "none": ({"mentions": []}, 422, "mentions: at least 1; 0"),
    "many": ({"mentions": [GOOD] * (MENTIONS + 1)}, 422, "mentions: at most 64; 65"),
    "text": ({"mentions": "Elm"}, 422, "mentions: a valid array; 'Elm'"),
    "no-sentence": (
        {"mentions": [GOOD, {"mention": "x"}]},
        422,
        "mentions, record 2, field sentence: a value; no such",
    ),
    "null": ({"mentions": [GOOD | {"mention": None}]}, 422, "mentions, record 1, field mention: a valid string; None"),
    "unknown": ({"mentions": [GOOD], "<b>": 1}, 422, "<b>: a field that is known; '<b>'"),
    "long": (
        {"mentions": [GOOD | {"sentence": "x" * (SENTENCE + 1)}]},
        422,
        "mentions, record 1, field sentence: at most 10,000 characters; 10,001",
    ),
    "half": ('{"mentions": [{"mention": "\\ud800", "sentence": ""}]}', 400, "body: JSON"),
    "k": ({"mentions": [GOOD], "k": 0}, 422, "k: greater than or equal to 1; 0"),
    "k-large": ({"mentions": [GOOD], "k": K + 1}, 422, "k: less than or equal to 100; 101"),
    "k-text": ({"mentions": [GOOD], "k": "3"}, 422, "k: a valid integer; '3'"),
    "k-true": ({"mentions": [GOOD], "k": True}, 422, "k: a valid integer; True"),
    "few": ({"mentions": [GOOD], "candidates": 9}, 422, "candidates: at least 10 (k); 9"),
    "all": ({"mentions": [GOOD], "candidates": CANDIDATES + 1}, 422, "candidates: less than or equal to 1000; 1001"),
    "nil": ({"mentions": [GOOD], "nil_threshold": 1.5}, 422, "nil_threshold: less than or equal to 1; 1.5"),
    "nil-nan": (
        {"mentions": [GOOD], "nil_threshold": float("nan")},
        422,
        "nil_threshold: less than or equal to 1; nan",
    ),
    "nil-text": ({"mentions": [GOOD], "nil_threshold": "0.5"}, 422, "nil_threshold: a valid number; '0.5'"),
    "no-calibration": (
        {"mentions": [GOOD], "nil_threshold": 0.5},
        422,
        "nil_threshold: a calibrated checkpoint; one without calibration.json",
    ),
    "unknown-long": ({"mentions": [GOOD], "x" * 9_999: 1}, 422, "x" * 80 + "...: a field that is known"),
    "errors": ({f"{i}": 1 for i in range(9_999)}, 422, "body: fields as /docs lists them; 10,000 errors"),
    "id": (
        {"mentions": [GOOD, GOOD | {"candidates": ["Q1", "Q12"]}]},
        422,
        "mentions, record 2, field candidates: ids of entities to link to; 'Q12'",
    ),
    "ids": (
        {"mentions": [GOOD | {"candidates": ["Q1", 3]}]},
        422,
        "mentions, record 1, field candidates, item 2: a valid string; 3",
    ),
    "path": (
        {"mentions": [GOOD | {"image": "/etc/passwd"}]},
        422,
        "mentions, record 1, field image: an image file in base64; '/etc/passwd'",
    ),
    "url": (
        {"mentions": [GOOD | {"image": "file:///etc/passwd"}]},
        422,
        "mentions, record 1, field image: an image file in base64; 'file:///",
    ),
    "data-url": (
        {"mentions": [GOOD | {"image": "data:image/png,abc"}]},
        422,
        "mentions, record 1, field image: a data URL in base64; 'data:image/png'",
    ),
    "svg": (
        {"mentions": [GOOD | {"image": coded(b"<svg xmlns='http://www.w3.org/2000/svg'/>")}]},
        422,
        "mentions, record 1, field image: a readable image; not an image of a known format",
    ),
    "eps": (
        {"mentions": [GOOD | {"image": coded(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")}]},
        422,
        "mentions, record 1, field image: a readable image; not an image of a known format",
    ),
    "cut": (
        {"mentions": [GOOD | {"image": coded(picture(size=(90, 90))[:3000])}]},
        422,
        "mentions, record 1, field image: a readable image; ",
    ),
}


@pytest.mark.parametrize(("body", "status", "said"), BAD.values(), ids=BAD)
def test_a_bad_request(body: Any, status: int, said: str, client: httpx.Client) -> None:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    answer = client.post("/link", content=content, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert f"{error['where']}: {error['expected']}; {error['got']}".startswith(said)
    assert answer.status_code == status


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that claims to be large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 6_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)], ids=str)
def test_a_decompression_bomb(size: tuple[int, int], client: httpx.Client) -> None:
    body = {"mentions": [GOOD | {"image": coded(bomb(*size))}]}
    for answer in (client.post("/link", json=body), client.post("/link", data=GOOD, files={"image": bomb(*size)})):
        assert answer.status_code == 422
        own, pillows = f"{size[0]} x {size[1]} pixels, more than 50,000,000", f"({size[0] * size[1]} pixels) exceeds"
        assert any(words in answer.json()["error"]["got"] for words in (own, pillows))


BAD_FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "no-mention": ({"data": {"sentence": "x"}}, "mention: a value; no such field"),
    "k": ({"data": GOOD | {"k": "x"}}, "k: a valid integer, unable to parse string as an integer; 'x'"),
    "text": ({"data": GOOD | {"image": "/etc/passwd"}}, "field 'image': a file; a text"),
    "file": ({"data": {"sentence": "x"}, "files": {"mention": b"x"}}, "field 'mention': a text; a file"),
    "twice": ({"data": {"mention": ["x", "y"], "sentence": "x"}}, "field 'mention': each field once; it twice"),
    "unknown": ({"data": GOOD | {"path": "/etc/passwd"}}, "path: a field that is known"),
    "no-image": ({"data": GOOD, "files": {"image": b"Elm"}}, "image: a readable image; not an image of a known format"),
    "candidates": ({"data": GOOD | {"candidates": "3"}}, "candidates: at least 10 (k); 3"),
}


@pytest.mark.parametrize(("sent", "said"), BAD_FORMS.values(), ids=BAD_FORMS)
def test_a_bad_form(sent: dict[str, Any], said: str, client: httpx.Client) -> None:
    answer = client.post("/link", **{"files": {"image": b""}, **sent})
    error = answer.json()["error"]
    assert f"{error['where']}: {error['expected']}; {error['got']}".startswith(said)
    assert answer.status_code == 422


FORM = b"".join(
    b'--a\r\nContent-Disposition: form-data; name="%s"\r\n\r\nElm\r\n' % name for name in (b"mention", b"sentence")
)


@pytest.mark.parametrize(
    ("kind", "content", "status"),
    [
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=a", b"x", 400),
        ("multipart/form-data; boundary=a", b"--a\r\n\r\nx\r\n--a--", 400),
        ("multipart/form-data; boundary=a", FORM.replace(b"Elm", b"\xff") + b"--a--\r\n", 400),
        ("multipart/form-data; boundary=a", FORM, 400),  # without its end
        ("multipart/form-data; boundary=a; charset=undefined", FORM + b"--a--", 200),
        (
            'multipart/form-data; boundary="a\\"; charset=utf-8; b=\\""',
            FORM.replace(b"Elm", "€".encode()) + b"--a--",
            400,
        ),
        ("text/plain", b"{}", 415),
        ("application/x-www-form-urlencoded", b"mention=Elm&sentence=x", 415),
        ("", b"{}", 415),
    ],
)
def test_a_body_of_another_kind(kind: str, content: bytes, status: int, client: httpx.Client) -> None:
    answer = client.post("/link", content=content, headers={"content-type": kind})
    assert (answer.status_code, list(answer.json())) == (status, ["links", "entities"] if status == 200 else ["error"])


def test_other_methods(client: httpx.Client) -> None:
    answer = client.get("/link")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json() == {"error": {"where": "method", "expected": "POST", "got": "GET"}}
