"""How uvicorn speaks HTTP here: with limits that it lacks."""

from __future__ import annotations

import math
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from m3el_fast.serve.limits import HEAD, Limits

GRACE = 5
"""Seconds that an answer may take to get to its client when the server ends."""


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 by httptools, which keeps headers and trailers of any size: beside its body, and as much again for what
    chunks need, a request has 64 KiB."""

    _beside = 0  # bytes that came and are no body, less those of the body

    def data_received(self, data: bytes) -> None:
        self._beside += len(data)
        super().data_received(data)
        if self._beside > HEAD and not self.transport.is_closing():
            self.send_400_response("The header fields are too large.")

    def on_message_begin(self) -> None:
        self._beside = 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        self._beside -= 2 * len(body)
        super().on_body(body)


def uvicorn_options(limits: Limits) -> dict[str, Any]:
    """Of ``uvicorn.Config``: a server that speaks so, and that ends although clients do not read their answers."""
    return {
        "http": Protocol,
        "ws": "none",
        "server_header": False,
        "timeout_graceful_shutdown": math.ceil(limits.seconds) + GRACE,
    }
