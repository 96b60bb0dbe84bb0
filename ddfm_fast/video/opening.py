"""What the name of a stream means: a file of this machine, a pipe, or an address for FFmpeg.

FFmpeg takes the text before a colon for a protocol, so it would not see ``12:30.mp4`` as a file.
Here a name that exists is a file, whatever characters it has, and so is every `pathlib.Path` and
every output: FFmpeg then gets ``file:NAME``. All other text with a colon is passed to FFmpeg:
``rtsp://…``, ``concat:a|b``, ``pipe:0``. A dash is standard input.
"""

from __future__ import annotations

import os
import re
import select
import stat
import sys
import time
from pathlib import Path

from ..images.doubts import warn

_SLICE = 0.2
"""seconds that Ctrl-C or `Pipe.close` may take while a pipe is silent"""
_PATIENCE = 5
"""slices of silence after which a pipe without a writer is mentioned"""
STDIN = "-"
_STDIN = Path("/dev/stdin")
_NO_DESCRIPTOR = re.compile(r"(pipe|fd):(?!\d*$)")
"""a name that FFmpeg would take for an open file of this process"""


def local(spec: str | os.PathLike[str]) -> Path | None:
    """Return the file or folder that a stream's name means; None if it is an address for FFmpeg."""
    if isinstance(spec, os.PathLike) or os.path.lexists(spec):
        return Path(spec)
    if spec == STDIN:
        return _STDIN if _STDIN.exists() else None
    is_plain = ":" not in spec or _NO_DESCRIPTOR.match(spec)
    return Path(spec) if is_plain else None


def address(path: str | os.PathLike[str]) -> str:
    """Name a file so that FFmpeg cannot take it for anything else."""
    text = os.fspath(path)
    if text == STDIN and not os.path.lexists(text):
        return "pipe:0"  # this system has no name for it
    return f"file:{text}" if ":" in text else text


def is_pipe(path: Path) -> bool:
    """Return whether it is a named pipe, or a shell's ``<(…)``."""
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except (OSError, ValueError):
        return False


class Pipe:
    """A named pipe as a file for PyAV to read; Ctrl-C can interrupt waiting for its writer.

    Args:
        path: The pipe.
        name: "ir" or "vis", for the message that it is waiting.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path, name: str):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._file = os.fdopen(handle, "rb", buffering=0)
        self._what = f"{name} is {path}, a pipe that nobody has written to yet"
        self._begun = self._closed = False
        self.error: BaseException | None = None
        """the error that ended a read; PyAV would have dropped it"""

    def read(self, size: int) -> bytes:
        """Wait for bytes, at most ``size``; none at the end."""
        try:
            data = b"" if self._closed or self.error is not None else self._wait(size)
        except BaseException as error:
            self.error = error
            data = b""
        if self._closed:
            self._file.close()
        return data

    def _wait(self, size: int) -> bytes:
        silent = 0
        while not self._closed:
            if select.select([self._file], [], [], _SLICE)[0]:
                data = self._file.read(size)
                # outside Linux, a pipe reads as ended until its first writer comes
                if data or (data is not None and (self._begun or sys.platform == "linux")):
                    self._begun = True
                    return data
                time.sleep(_SLICE)
            silent += 1
            if silent == _PATIENCE and not self._begun:
                warn(f"{self._what}; waiting for it (Ctrl-C stops waiting)")
        return b""

    def close(self, *, reading: bool) -> None:
        """Close it; a thread that is still reading closes it by itself."""
        self._closed = True
        if not reading:
            self._file.close()
