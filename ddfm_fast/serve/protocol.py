"""The server's protocol, with time limits for a header to arrive and an answer to be read."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
"""seconds in which the header of a request must be complete"""


class Protocol(H11Protocol):
    """Close connections that do not finish a request, or do not read the answer."""

    read_seconds = 60.0
    waiting: asyncio.TimerHandle | None = None
    reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.expect_header()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self.header_came()
        elif self.waiting is None and self.timeout_keep_alive_task is None:
            self.expect_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self.header_came()
        if self.reading is not None:
            self.reading.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.reading is None and self.transport.get_write_buffer_size():
            self.reading = self.loop.call_later(self.read_seconds, self.expect_reader)

    def expect_header(self) -> None:
        """Close the connection unless a header comes."""
        self.waiting = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def header_came(self) -> None:
        """Let the connection live."""
        if self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None

    def expect_reader(self) -> None:
        """End the connection of a client that has not read its answer, which stays in memory."""
        self.reading = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()


def protocol(seconds: float) -> type[Protocol]:
    """Make the protocol with that time for reading an answer."""
    return type("Protocol", (Protocol,), {"read_seconds": seconds})
