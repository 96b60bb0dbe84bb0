"""Limit the cost of a request, and read its body within the limit."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Receive = Callable[[], Awaitable[Any]]

DISCARD_SECONDS = 1.0
"""how long the rest of a too long body is read, so that its sender sees the answer"""

FORMATS = ("png", "jpeg", "tiff", "npy")
"""kinds of picture files that are decoded unless others are requested"""


@dataclass(frozen=True)
class Limits:
    """Limits of the service; each is checked before what it bounds is spent."""

    max_bytes: int = 2**26
    """of a request's body"""
    max_pixels: int = 2**24
    """of a picture, by its header"""
    max_queue: int = 256
    """requests that were read, and are waiting or in progress"""
    max_batch: int | None = None
    """requests that are fused together; None for as many as the fuser takes at once"""
    wait: float = 0.005
    """seconds to wait for others of the same size and options"""
    timeout: float = 60.0
    """seconds from the first byte of a request to its result"""
    max_held: int = 2**30
    """bytes of all bodies in memory"""
    formats: tuple[str, ...] = FORMATS
    """kinds of picture files that are decoded, see `.formats`"""


class Refused(Exception):
    """A request that gets no picture: its status, a sentence, and headers."""

    def __init__(self, status: int, sentence: str, **headers: str):
        super().__init__(sentence)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Left(Exception):
    """The client closed the connection before its answer."""


@dataclass
class Held:
    """The bytes of bodies in memory, counted as they come."""

    most: int
    now: int = 0

    def take(self, count: int) -> None:
        """Count more bytes; raise Refused if that is too much."""
        if self.now + count > self.most:
            raise Refused(
                503, "the service holds as many bytes as it can; try again soon",
                Retry_After="1", Connection="close",
            )  # fmt: skip
        self.now += count

    def give(self, count: int) -> None:
        """Count bytes that are gone."""
        self.now -= count


@dataclass
class Clock:
    """The time that a request has left."""

    seconds: float
    start: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self.start

    @property
    def left(self) -> float:
        """Seconds until it is refused, at least 0."""
        return max(0.0, self.seconds - self.passed)


def too_long(limits: Limits) -> Refused:
    """Return the refusal of a body."""
    return Refused(
        413,
        f"the request is longer than {limits.max_bytes} bytes; send smaller pictures, or start "
        "the service with a higher --max-bytes",
        Connection="close",
    )


def check_length(headers: Mapping[str, str], limits: Limits) -> None:
    """Refuse a body by the length that its header claims, before any of it is read."""
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or len(length) > 19:
        raise Refused(400, f"Content-Length is {length[:40]!r}; expected a number of bytes")
    if int(length) > limits.max_bytes:
        raise too_long(limits)


async def read_body(receive: Receive, limits: Limits, held: Held, clock: Clock) -> bytes:
    """Read a body, cut off at the limit whatever its header claimed.

    The caller gives its bytes back to ``held``.

    Raises:
        Refused: It is too long, or too slow.
        Left: The client did not send all of it.
    """
    chunks: list[bytes] = []
    try:
        await asyncio.wait_for(_read(receive, chunks, limits, held), clock.left)
    except BaseException as error:
        held.give(sum(map(len, chunks)))
        if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
            raise Refused(
                408,
                f"the request was not complete after {clock.seconds:g} seconds; send it faster, "
                "or start the service with a higher --timeout",
                Connection="close",
            ) from None
        raise
    return b"".join(chunks)


async def _read(receive: Receive, chunks: list[bytes], limits: Limits, held: Held) -> None:
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Left
        chunk, more = message.get("body", b""), message.get("more_body", False)
        length += len(chunk)
        if length > limits.max_bytes:
            raise too_long(limits)
        held.take(len(chunk))
        chunks.append(chunk)


async def discard(receive: Receive, limits: Limits) -> None:
    """Read on for a moment without keeping anything.

    A connection that is closed over unread bytes is reset, and its client may lose the answer.
    """

    async def read() -> None:
        length, more = 0, True
        while more and length <= limits.max_bytes:
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)
            length += len(message.get("body", b""))

    try:
        await asyncio.wait_for(read(), DISCARD_SECONDS)
    except (asyncio.TimeoutError, TimeoutError):
        return


def retry_after(seconds: float) -> str:
    """Return whole seconds, from 1 to a minute, for the header of that name."""
    return str(min(60, max(1, math.ceil(seconds))))
