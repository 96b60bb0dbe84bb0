"""A JSON object per line on stderr, without pictures; and the warnings of each request."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, TextIO

from ..images.doubts import DDFMWarning

_heard: ContextVar[list[str] | None] = ContextVar("heard", default=None)
_LONGEST = 500
"""characters of a text in a line: what a client sends may come back in a sentence"""


class Log:
    """Writes lines; one writer at a time."""

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = file
        self.lock = threading.Lock()

    def __call__(self, event: str, **fields: Any) -> None:
        """Write a line: the time, the event, and the fields that are not None."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03}Z"
        shown = {
            name: value[:_LONGEST] if isinstance(value, str) else value
            for name, value in fields.items()
            if value is not None
        }
        line = json.dumps({"time": stamp, "event": event, **shown}, default=str)
        with self.lock, contextlib.suppress(OSError, ValueError):  # a pipe that nobody reads
            file = self.file or sys.stderr
            file.write(line + "\n")
            file.flush()


class Lines(logging.Handler):
    """Passes what the server's library logs to a :class:`Log`."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as a line."""
        error = record.exc_info[1] if record.exc_info else None
        self.log("server", level=record.levelname, message=record.getMessage(), error=error)


@contextlib.contextmanager
def told_apart(log: Log) -> Iterator[None]:
    """Send the library's warnings to whoever listens in their thread, else to the log."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        heard = _heard.get()
        if heard is not None and issubclass(category, DDFMWarning):
            heard.append(str(message))
        else:
            log("warning", message=str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        warnings.simplefilter("always", DDFMWarning)
        yield


@contextlib.contextmanager
def hearing() -> Iterator[list[str]]:
    """Collect the warnings of this thread in the list."""
    sentences: list[str] = []
    token = _heard.set(sentences)
    try:
        yield sentences
    finally:
        _heard.reset(token)
