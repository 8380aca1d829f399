"""How uvicorn speaks HTTP here: with limits that it lacks."""

from __future__ import annotations

import math
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from m3el_fast.serve.limits import HEAD, Limits

GRACE = 5
"""Seconds that an answer may take to get to its client when the server ends."""


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 by httptools, which keeps header fields and trailers of any size. Here a connection may send 64 KiB (and
    what is read with them) that are no body: at the head of a request, between two chunks, after the last one."""

    _no_body = 0  # bytes that came since the request began or, later, since the last of its body

    def data_received(self, data: bytes) -> None:
        self._no_body += len(data)
        super().data_received(data)
        if self._no_body > HEAD and not self.transport.is_closing():
            self.send_400_response("The header fields are too large.")

    def on_message_begin(self) -> None:
        self._no_body = 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        self._no_body = 0
        super().on_body(body)


def uvicorn_options(limits: Limits) -> dict[str, Any]:
    """Of ``uvicorn.Config``: a server that speaks so, and that ends although clients do not read their answers."""
    return {
        "http": Protocol,
        "ws": "none",
        "server_header": False,
        "timeout_graceful_shutdown": math.ceil(limits.seconds) + GRACE,
    }
