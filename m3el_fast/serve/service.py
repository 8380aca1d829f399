"""What stands behind the addresses: one request from its body to its links."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect, Request

from m3el_fast.calibration import chosen_threshold
from m3el_fast.link import Links
from m3el_fast.serve.batching import Answer, Batcher
from m3el_fast.serve.entities import Entities
from m3el_fast.serve.errors import Refused
from m3el_fast.serve.limits import Limits
from m3el_fast.serve.linking import Query
from m3el_fast.serve.reading import read_query
from m3el_fast.serve.swapping import IndexInUse

_DECODING = 8  # bodies at a time: one of 12 MB can take a gigabyte, and a picture of 50 million pixels as much


class Service:
    """Links what clients send to the index in use.

    Args:
        index: answers come from; entities: what else is known of them.
        name: of the checkpoint; watch: seconds between two looks at the index's folder.
        nil_threshold: of requests that name none; None = the checkpoint's, if it has one.
    """

    def __init__(
        self,
        index: IndexInUse,
        entities: Entities,
        name: str,
        limits: Limits,
        watch: float,
        nil_threshold: float | None = None,
    ) -> None:
        self.index, self.entities, self.name, self.limits, self.watch = index, entities, name, limits, watch
        self._nil_threshold = nil_threshold
        self.requests = 0
        self._batcher = Batcher(lambda queries: self.index.linker.answer(queries))
        self._decoding = CapacityLimiter(min(os.cpu_count() or 1, _DECODING))
        self._size = index.model.encoder.image_size

    def start(self) -> None:
        self._batcher.start()

    def close(self) -> None:
        """Finish the requests in hand; returns when that is done."""
        self._batcher.close()

    async def watch_index(self) -> None:
        """Take newer indexes into use, until cancelled."""
        while True:
            await anyio.sleep(self.watch)
            await to_thread.run_sync(self.index.look)

    async def link(self, request: Request) -> Answer:
        """The links that a request asks for.

        Raises:
            InputError: it asks for something that there is not.
            Refused: with another status than 422: see the module ``reading``; too many requests are in hand (503), it
                came too slowly (408), or linking took too long (504).
            ClientDisconnect: nobody waits any more.
        """
        with self._admitted():
            deadline = anyio.current_time() + self.limits.seconds
            try:
                with anyio.fail_after(self.limits.seconds):
                    parse = await read_query(request, self._size, self.limits)
            except TimeoutError:
                expected = f"all of it in {self.limits.seconds:g} s"
                raise Refused(408, "body", expected, "a part", {"Connection": "close"}) from None
            try:
                with anyio.fail_after(max(0.0, deadline - anyio.current_time())):
                    query, nil_threshold = await to_thread.run_sync(parse, limiter=self._decoding)
                    threshold = self._threshold(nil_threshold)
                    return [Links(links, threshold) for links in await self._unless_gone(request, query)]
            except TimeoutError:
                raise Refused(504, "server", f"an answer in {self.limits.seconds:g} s", "none") from None

    def health(self) -> dict[str, Any]:
        """As :class:`HealthOut`."""
        index, linker = self.index, self.index.linker
        return {
            "ready": self._batcher.alive,
            "model": linker.index.manifest.model,
            "checkpoint": self.name,
            "index": {
                "name": index.path.absolute().name,
                "version": linker.index.manifest.version,
                "entities": len(linker.index),
                "opened": index.opened.isoformat(timespec="seconds"),
                "problem": index.problem,
            },
            "kb": self.entities.there,
            "nil_threshold": self._threshold(None),
            "requests": self.requests,
        }

    def _threshold(self, asked: float | None) -> float | None:
        """The NIL threshold of a request that asks for one, or (None) does not."""
        given = self._nil_threshold if asked is None else asked
        return chosen_threshold("nil_threshold", self.index.model.calibration, given)

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self.requests >= self.limits.requests:
            got = f"{self.requests}"
            raise Refused(
                503, "server", f"fewer than {self.limits.requests} requests in hand", got, {"Retry-After": "1"}
            )
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    async def _unless_gone(self, request: Request, query: Query) -> Answer:
        """The links of a query; it is taken back when its client goes."""
        links = asyncio.ensure_future(self._batcher.link(query))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((links, gone), return_when=asyncio.FIRST_COMPLETED)
            if not links.done():
                raise ClientDisconnect
            return links.result()
        finally:
            links.cancel()
            gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
