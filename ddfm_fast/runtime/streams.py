"""Keep failures of the standard streams from disturbing the work.

A program that prints must not fail, or end early, because a pipe was closed, a disk is full or a
name has bytes that the terminal's encoding lacks: files matter more than what is printed.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_FAILED = 1


class _Raw(io.FileIO):
    """A stream that, once a write fails, discards what it is given and remembers why."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int | None:  # type: ignore[override]  # None: it would block
        left = memoryview(data).cast("B")
        size = left.nbytes
        try:
            while left and self.failure is None:  # without a buffer, no caller tries again
                if (written := super().write(left)) is None:
                    return size - left.nbytes or None
                left = left[written:]
        except OSError as error:
            self.failure = error
        return size


@contextmanager
def guarded() -> Iterator[None]:
    """Keep printing inside from raising; if stdout could not be written, the exit code says so.

    A reader that went away, as ``| head`` does, is no failure. Characters that the encoding lacks
    are escaped. Descriptors 0 to 2 are kept open, so that no output file gets one of them, and with
    it what libraries print.

    Raises:
        SystemExit: The program's own, with 1 in place of 0 if stdout could not be written; the
            reason is on stderr.
    """
    _occupy()
    before = sys.stdout, sys.stderr
    out, sys.stdout = _tolerant(sys.stdout)
    _, sys.stderr = _tolerant(sys.stderr)
    code: object = None
    try:
        try:
            yield
        except SystemExit as end:
            code = end.code
            if not _lost(out):
                raise
        if failure := _lost(out):
            print(
                f"error: stdout cannot be written ({failure.strerror}); send it to a place that "
                "has room",
                file=sys.stderr,
            )
            raise SystemExit(code or _FAILED)
    finally:
        _flush()
        sys.stdout, sys.stderr = before


def _occupy() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _tolerant(stream) -> tuple[_Raw | None, io.TextIOBase]:
    """Return a stream of the same descriptor that never fails; without one, the stream itself."""
    if stream is None:  # closed by whoever started the program
        return None, open(os.devnull, "w")  # noqa: SIM115  (lives as long as the program)
    try:
        if os.name == "nt" and stream.isatty():  # a console, which is not a file there
            return None, stream
        stream.flush()
        raw = _Raw(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError):
        return None, stream
    # write_through alone stops at the buffer; with PYTHONUNBUFFERED there is none, as in Python
    return raw, io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _lost(raw: _Raw | None) -> OSError | None:
    """Return why output was lost; None if none was, or if nobody reads it any more."""
    _flush()
    failure = None if raw is None else raw.failure
    return None if failure is None or failure.errno == errno.EPIPE else failure


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
