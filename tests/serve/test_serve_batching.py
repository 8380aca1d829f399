"""What waits is linked together, in the order in which it came; what nobody waits for is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from m3el_fast.errors import InputError
from m3el_fast.serve.batching import Batcher
from m3el_fast.serve.errors import Refused
from m3el_fast.serve.limits import MENTIONS
from m3el_fast.serve.linking import Query


def query(name: str, k: int = 1, mentions: int = 1) -> Query:
    return Query([{"mention": name}] * mentions, [None] * mentions, k, None)


class Work:
    """Answers with the mentions, once ``go_on`` is set."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.started, self.go_on = threading.Semaphore(0), threading.Event()

    def __call__(self, queries: list[Query]) -> list[Any]:
        self.calls.append([one.mentions[0]["mention"] for one in queries])
        self.started.release()
        assert self.go_on.wait(10)
        for one in queries:
            if one.mentions[0]["mention"] == "bad":
                raise InputError("mentions, record 1", "good", "bad")
            if one.mentions[0]["mention"] == "broken":
                raise RuntimeError("a defect")
        return [[[mention] for mention in one.mentions] for one in queries]


def during_a_call(then: Callable[[Batcher, Work], Awaitable[Any]]) -> tuple[Work, Any]:
    """Run ``then`` while the thread links a query called first."""

    async def run() -> Any:
        first = asyncio.ensure_future(batcher.link(query("first")))
        await asyncio.to_thread(work.started.acquire)
        result = await then(batcher, work)
        assert await first == [[{"mention": "first"}]]
        return result

    work = Work()
    batcher = Batcher(work)
    batcher.start()
    try:
        return work, asyncio.run(run())
    finally:
        work.go_on.set()
        batcher.close()


def ask(batcher: Batcher, *queries: Query) -> list[asyncio.Future[Any]]:
    return [asyncio.ensure_future(batcher.link(one)) for one in queries]


async def answers(work: Work, asked: list[asyncio.Future[Any]]) -> list[Any]:
    await asyncio.sleep(0.01)  # all of them wait now
    work.go_on.set()
    return await asyncio.gather(*asked, return_exceptions=True)


def test_what_waits_is_linked_together() -> None:
    async def then(batcher: Batcher, work: Work) -> list[Any]:
        return await answers(work, ask(batcher, *(query(f"{i}") for i in range(5))))

    work, found = during_a_call(then)
    assert work.calls == [["first"], ["0", "1", "2", "3", "4"]]
    assert found == [[[{"mention": f"{i}"}]] for i in range(5)]


def test_other_options_and_too_many_mentions_wait_their_turn() -> None:
    waiting = [
        query("a", 2),
        query("b", 3),
        query("c", 2, MENTIONS - 1),
        query("d", 2),
        query("e", 3),
        query("f", 2, 70),
    ]

    async def then(batcher: Batcher, work: Work) -> list[Any]:
        return await answers(work, ask(batcher, *waiting))

    work, found = during_a_call(then)
    assert work.calls == [["first"], ["a", "c"], ["b", "e"], ["d"], ["f"]]
    assert [len(links) for links in found] == [1, 1, MENTIONS - 1, 1, 1, 70]


def test_one_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def then(batcher: Batcher, work: Work) -> list[Any]:
        return await answers(work, ask(batcher, query("a"), query("bad"), query("broken"), query("b")))

    work, (a, bad, broken, b) = during_a_call(then)
    assert work.calls[1:] == [["a", "bad", "broken", "b"], ["a"], ["bad"], ["broken"], ["b"]]
    assert (a, b) == ([[{"mention": "a"}]], [[{"mention": "b"}]])
    assert (type(bad), type(broken)) == (InputError, RuntimeError)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [RuntimeError]


def test_a_query_that_is_taken_back() -> None:
    async def then(batcher: Batcher, work: Work) -> list[Any]:
        asked = ask(batcher, query("a"), query("b"))
        await asyncio.sleep(0.01)
        asked[0].cancel()
        return await answers(work, asked)

    work, (a, b) = during_a_call(then)
    assert work.calls == [["first"], ["b"]]
    assert isinstance(a, asyncio.CancelledError)
    assert b == [[{"mention": "b"}]]


def test_a_query_that_is_taken_back_while_it_is_linked() -> None:
    async def then(batcher: Batcher, work: Work) -> list[Any]:
        asked = ask(batcher, query("a"), query("b"))
        await asyncio.sleep(0.01)
        work.go_on.set()
        await asyncio.to_thread(work.started.acquire)  # a and b are being linked, or have been
        asked[0].cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    work, (_, b) = during_a_call(then)
    assert work.calls == [["first"], ["a", "b"]]
    assert b == [[{"mention": "b"}]]


def test_closing_finishes_what_waits() -> None:
    async def then(batcher: Batcher, work: Work) -> list[Any]:
        asked = ask(batcher, query("a"))
        await asyncio.sleep(0.01)
        closing = asyncio.ensure_future(asyncio.to_thread(batcher.close))
        while batcher.alive:
            await asyncio.sleep(0.001)
        late = ask(batcher, query("late"))
        found = await answers(work, asked + late)
        await closing
        return found

    work, (a, late) = during_a_call(then)
    assert work.calls == [["first"], ["a"]]
    assert a == [[{"mention": "a"}]]
    assert isinstance(late, Refused)
    assert (late.status, late.headers) == (503, {"Retry-After": "5"})
