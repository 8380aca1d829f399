"""One thread that links what waits, many requests in a call."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from m3el_fast.errors import InputError
from m3el_fast.link import Links
from m3el_fast.serve.errors import Refused
from m3el_fast.serve.limits import MENTIONS
from m3el_fast.serve.linking import Query

Answer = list[Links]  # of each mention of a query
Work = Callable[[list[Query]], list[Answer]]
Outcome = Answer | BaseException

_LINGER = 0.008  # seconds
_LOG = logging.getLogger("m3el_fast.serve")


class _Job:
    """A query that waits, and who waits for its links."""

    def __init__(self, query: Query, loop: asyncio.AbstractEventLoop) -> None:
        self.query, self.loop = query, loop
        self.answer: asyncio.Future[Answer] = loop.create_future()

    def settle(self, outcome: Outcome) -> None:
        """On the loop's thread."""
        if self.answer.done():  # its client has gone, or its time was up
            return
        if isinstance(outcome, BaseException):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


class Batcher:
    """Links queries on a thread of its own: the one that came first and, in the order in which they came, those behind
    it with the same options, up to 64 mentions. So a query waits for no more calls than there were queries before it.

    Where fewer wait than there were in hand when the last call ended, the thread waits for them, eight milliseconds at
    most: clients that have just been answered need a moment to ask again. A lone client waits so once, after others
    have stopped, and never again.

    Args:
        work: links queries with the same options; called on the thread, with one call at a time.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="m3el-link", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def close(self) -> None:
        """Link what waits, take nothing more, and return when all is done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    async def link(self, query: Query) -> Answer:
        """The links of a query. A caller that is cancelled takes its query back, unless that is being linked.

        Raises:
            InputError: as :meth:`MemoryLinker.answer`.
            Refused: the thread has ended (503).
        """
        job = _Job(query, asyncio.get_running_loop())
        with self._changed:
            if not self.alive:
                raise Refused(503, "server", "one that is up", "one that is shutting down", {"Retry-After": "5"})
            self._jobs.append(job)
            self._changed.notify()
        try:
            return await job.answer
        finally:
            with self._changed:
                if job in self._jobs:
                    self._jobs.remove(job)

    # -- on the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        busy = 1
        while batch := self._next(busy):
            outcomes = self._outcomes([job.query for job in batch])
            busy = len(batch) + len(self._jobs)
            for job, outcome in zip(batch, outcomes, strict=True):
                job.loop.call_soon_threadsafe(job.settle, outcome)

    def _next(self, expected: int) -> list[_Job]:
        """The next batch, empty when there will be none."""
        with self._changed:
            while True:
                while not self._jobs and not self._closing:
                    self._changed.wait()
                until = time.monotonic() + _LINGER
                while len(self._jobs) < expected and not self._closing and (left := until - time.monotonic()) > 0:
                    self._changed.wait(left)
                if self._jobs or self._closing:  # else all of them were taken back
                    return self._take()

    def _take(self) -> list[_Job]:
        if not self._jobs:
            return []
        batch: list[_Job] = []
        options, mentions = self._jobs[0].query.options, 0
        for job in list(self._jobs):
            if job.query.options != options:
                continue
            mentions += len(job.query.mentions)
            if batch and mentions > MENTIONS:
                break
            batch.append(job)
        for job in batch:
            self._jobs.remove(job)
        return batch

    def _outcomes(self, queries: list[Query]) -> Sequence[Outcome]:
        """What became of each; what cannot be linked together is linked one by one, so that one fails alone."""
        try:
            return self._work(queries)
        except Exception as error:
            if len(queries) > 1:
                return [outcome for query in queries for outcome in self._outcomes([query])]
            if not isinstance(error, InputError):
                _LOG.exception("a request failed")
            return [error]
