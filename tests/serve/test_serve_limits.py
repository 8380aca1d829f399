"""Requests that are too large, too slow or too many, and clients that go away."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from m3el_fast.serve import protocol, reading
from m3el_fast.serve.limits import Limits
from m3el_fast.serve.service import Service
from serve.serving import GOOD, Served, coded, picture, running

BODY = {"mentions": [GOOD]}


class Held:
    """Stands in a linker's place until ``go_on`` is set; counts the queries of each call."""

    def __init__(self, service: Service) -> None:
        self.linker = service.index.linker
        self.calls: list[int] = []
        self.started, self.go_on = threading.Semaphore(0), threading.Event()

    def answer(self, queries: list[Any]) -> Any:
        self.calls.append(len(queries))
        self.started.release()
        assert self.go_on.wait(20)
        return self.linker.answer(queries)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.linker, name)


@contextmanager
def held(served: Served, **limits: Any) -> Iterator[tuple[str, Held, Service]]:
    service = served.service(**limits)
    held = Held(service)
    service.index.linker = held  # type: ignore[assignment]
    with running(service) as address:
        try:
            yield address, held, service
        finally:
            held.go_on.set()


def post(address: str) -> httpx.Response:
    return httpx.post(f"{address}/link", json=BODY, timeout=30)


def until(condition: Any) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def raw(address: str, *parts: bytes) -> socket.socket:
    """A connection that has sent ``parts`` of a request, and more if its caller wants so."""
    place = urlsplit(address)
    connection = socket.create_connection((place.hostname, place.port), timeout=20)
    for part in parts:
        connection.sendall(part)
    return connection


def head(length: int) -> bytes:
    return (
        f"POST /link HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()
    )


# -- size -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(served: Served) -> Iterator[str]:
    """Of a server that takes bodies of 50,000 bytes and pictures of 20,000 bytes and 10,000 pixels."""
    with running(served.service(body=50_000, image=20_000, pixels=10_000)) as address:
        yield address


@pytest.mark.parametrize("length", [50_001, 300_000, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(length: int, chunked: bool, small: str) -> None:
    def chunks() -> Iterator[bytes]:
        for start in range(0, length, 10_000):
            yield b" " * min(10_000, length - start)

    headers = {"content-type": "application/json"} | ({} if chunked else {"content-length": str(length)})
    answer = httpx.post(f"{small}/link", content=chunks(), headers=headers)
    assert answer.status_code == 413
    got = "more" if chunked else f"{length:,}"
    assert answer.json() == {"error": {"where": "body", "expected": "at most 50,000 bytes", "got": got}}


def test_a_body_of_just_the_size(small: str) -> None:
    content = b'{"mentions": [{"mention": "Elm", "sentence": "x"}]}'.ljust(50_000)
    answer = httpx.post(f"{small}/link", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200


def test_a_form_that_is_too_large(small: str) -> None:
    answer = httpx.post(f"{small}/link", data=GOOD, files={"image": b"x" * 60_000})
    assert (answer.status_code, answer.json()["error"]["where"]) == (413, "body")


def test_a_picture_that_is_too_large(small: str) -> None:
    many, big = picture(kind="BMP", size=(100, 90)), picture(size=(101, 100), kind="JPEG")
    assert len(many) > 20_000 > len(big)
    found = [
        httpx.post(f"{small}/link", json={"mentions": [GOOD | {"image": coded(data)}]}) for data in (many, big)
    ] + [httpx.post(f"{small}/link", data=GOOD, files={"image": data}) for data in (many, big)]
    assert [answer.status_code for answer in found] == [413, 422, 413, 422]
    assert found[0].json()["error"]["expected"] == "an image file of at most 20,000 bytes"
    assert found[1].json()["error"]["got"] == "101 x 100 pixels, more than 10,000"


def test_header_fields_that_are_too_large(small: str) -> None:
    lines = b"X: " + b"x" * 30_000 + b"\r\n"
    with raw(small) as fine:
        for _ in range(3):  # each request has as much
            fine.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + lines + lines + b"\r\n")
            assert fine.recv(9_999).startswith(b"HTTP/1.1 200")
    chunks = b"POST /link HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b'{"mentions": [{"mention": "Elm", "sentence": "x"}]}'
    parts = [body.ljust(45_000)[start : start + 3] for start in range(0, 45_000, 3)]
    with raw(small, chunks) as fine:
        time.sleep(0.1)  # the head is read
        fine.sendall(b"".join(b"3\r\n%s\r\n" % part for part in parts) + b"0\r\n\r\n")
        assert fine.recv(99).startswith(b"HTTP/1.1 200")
    large = chunks + b"61a80\r\n" + bytes(400_000) + b"\r\n0\r\n"
    small_body = chunks + b"33\r\n" + body + b"\r\n0\r\n"
    for start in (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", small_body, large, chunks + b"33;"):
        for end in (lines * 9, b"X: " + b"x" * 999_999):
            with raw(small, start) as connection:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(end)
                    assert connection.recv(99).startswith(b"HTTP/1.1 400")
                with contextlib.suppress(ConnectionError):
                    while connection.recv(9_999):
                        pass


# -- time and number --------------------------------------------------------------------------------------------------


def test_a_body_that_comes_too_slowly(served: Served) -> None:
    with running(served.service(seconds=0.3)) as address, raw(address, head(99), b'{"mentions"') as slow:
        answer = b"".join(iter(lambda: slow.recv(9_999), b""))  # to its end: the server closes
        assert answer.startswith(b"HTTP/1.1 408") and b"\r\nconnection: close\r\n" in answer.lower()


def test_pictures_that_take_too_long(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is up no further one is decoded, and the thread is free."""
    decoded: list[float] = []

    def slow(data: bytes, where: str, size: int, limits: Limits) -> None:
        time.sleep(0.1)
        decoded.append(time.monotonic())

    monkeypatch.setattr(reading, "decode_picture", slow)
    with running(served.service(seconds=0.25)) as address:
        answer = httpx.post(f"{address}/link", json={"mentions": [GOOD | {"image": coded(b"x")}] * 60}, timeout=30)
        assert answer.status_code == 504
        count = len(decoded)
        assert count <= 5
        time.sleep(0.3)
        assert len(decoded) == count


def test_linking_that_takes_too_long(served: Served) -> None:
    with held(served, seconds=0.3) as (address, holder, service):
        late = post(address)
        assert late.status_code == 504
        assert late.json() == {"error": {"where": "server", "expected": "an answer in 0.3 s", "got": "none"}}
        waiting = post(address)  # behind the first, and taken back
        assert waiting.status_code == 504
        holder.go_on.set()
        until(lambda: post(address).status_code == 200)
        assert sum(holder.calls[:2]) == 2  # the first, and the one after the second
        assert service.requests == 0


def test_too_many_requests(served: Served) -> None:
    with held(served, requests=3) as (address, holder, service), ThreadPoolExecutor(3) as pool:
        asked: list[Future[httpx.Response]] = [pool.submit(post, address) for _ in range(3)]
        until(lambda: service.requests == 3)
        refused = post(address)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"] == {"where": "server", "expected": "fewer than 3 requests in hand", "got": "3"}
        assert httpx.get(f"{address}/healthz").json()["requests"] == 3  # the event loop is free
        holder.go_on.set()
        assert [one.result().status_code for one in asked] == [200] * 3
        assert post(address).status_code == 200


def test_clients_that_go_away(served: Served) -> None:
    content = b'{"mentions": [{"mention": "Elm", "sentence": "x"}]}'
    with held(served) as (address, holder, service), ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, address)
        assert holder.started.acquire(timeout=10)
        gone = [raw(address, head(len(content)), content), raw(address, head(len(content)), content[:9])]
        last = pool.submit(post, address)
        until(lambda: service.requests == 4)
        for connection in gone:
            connection.close()
        until(lambda: service.requests == 2)
        holder.go_on.set()
        assert (first.result().status_code, last.result().status_code) == (200, 200)
        assert sum(holder.calls) == 2


def test_requests_in_hand_are_finished(served: Served) -> None:
    service = served.service()
    holder = Held(service)
    service.index.linker = holder  # type: ignore[assignment]
    with ThreadPoolExecutor(2) as pool:
        with running(service) as address:
            asked = [pool.submit(post, address) for _ in range(2)]
            until(lambda: service.requests == 2)
            threading.Timer(0.3, holder.go_on.set).start()
        # the server has ended
        assert [one.result().status_code for one in asked] == [200, 200]


@pytest.mark.slow
def test_a_client_that_does_not_read(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not keep the server from ending."""
    monkeypatch.setattr(protocol, "GRACE", 1)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with running(served.service(seconds=1)) as address:
            client.connect((urlsplit(address).hostname, urlsplit(address).port))
            client.sendall(b"GET /page.js HTTP/1.1\r\nHost: x\r\n\r\n" * 2_000)
            time.sleep(1)  # as much was answered as the sockets hold
            started = time.monotonic()
        assert 1.5 < time.monotonic() - started < 10  # the one that waits was given its time
