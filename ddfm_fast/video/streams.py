"""Outputs that are not files: standard output, and addresses to which FFmpeg sends.

They take the place of `outputs.Output`, but have no part, no lock and nothing to complete: what has
been sent is sent.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from .frames import VideoError

STDOUT = "-"
_FD = 1


class ReaderGone(Exception):
    """The reader of standard output has closed it: an end, not an error."""


class _Sent:
    """The container that a protocol takes."""

    def __init__(self, format: str, options: dict[str, str] | None = None):
        self.format, self.options = format, options or {}


_SCHEMES = {
    "rtsp": _Sent("rtsp", {"rtsp_transport": "tcp"}),
    "udp": _Sent("mpegts"),
    "tcp": _Sent("mpegts"),
    "srt": _Sent("mpegts"),
    "rtp": _Sent("rtp_mpegts"),
    "rtmp": _Sent("flv"),
}


def is_stream(out: str | os.PathLike[str]) -> bool:
    """Return whether an output is standard output or an address; a `pathlib.Path` never is."""
    return isinstance(out, str) and (out == STDOUT or "://" in out)


class StreamOutput:
    """Standard output as Matroska, or an address by the container of its protocol.

    Raises:
        VideoError: Standard output is a terminal, or the protocol is unknown.
    """

    part = None
    """nothing is left behind"""

    def __init__(self, out: str):
        self.path, self._pipe = out, None
        if out == STDOUT:
            if os.isatty(_FD):
                raise VideoError(
                    "out is -, and standard output is a terminal; pipe it on (… -o - | ffplay -), "
                    "or name a file"
                )
            self._pipe = _Stdout()
            self.target: Any = self._pipe
            self.format, self.suffix = "matroska", ".mkv"
            self.options = {"cluster_time_limit": "1"}
            return
        sent = _SCHEMES.get(out.partition("://")[0].lower())
        if sent is None:
            known = ", ".join(f"{name}://" for name in _SCHEMES)
            raise VideoError(f"out is {out}; expected a file, a folder, - or one of {known}")
        self.target, self.format, self.suffix = out, sent.format, ".ts"
        self.options = dict(sent.options)

    def mark(self) -> None:
        """Note that all was sent; ReaderGone if nobody reads it any more."""
        if self._pipe is not None and self._pipe.gone:
            raise ReaderGone

    def take_back(self) -> None:
        """Do nothing: what was sent stays sent."""

    def complete(self) -> None:
        """Close it."""
        self.leave(empty=False)

    def leave(self, *, empty: bool) -> Path | None:
        """Close it; nothing is left."""
        del empty
        if self._pipe is not None:
            self._pipe.close()
        return None


class _Stdout:
    """Standard output as a file for PyAV to write; a reader that is gone is noted, not raised.

    Otherwise FFmpeg would report "Input/output error".
    """

    gone = False

    def __init__(self) -> None:
        sys.stdout.flush()
        if sys.platform == "win32":  # there it is text, and line ends are rewritten
            import msvcrt

            msvcrt.setmode(_FD, os.O_BINARY)
        self._file = os.fdopen(os.dup(_FD), "wb", buffering=0)

    def write(self, data: bytes) -> int:
        """Write all of it."""
        rest = memoryview(data)
        try:
            while rest and not self.gone:
                rest = rest[self._file.write(rest) or 0 :]
        except (BrokenPipeError, ConnectionResetError):
            self.gone = True
        return len(data)

    def close(self) -> None:
        """Close our copy."""
        self._file.close()
