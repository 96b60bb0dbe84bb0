"""A file system that fails and hesitates at random, below some folders, in this process.

Where the system's functions are called through Python; what a library does in C is left alone.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT)
BY_NAME = ("open", "replace", "listdir", "scandir", "stat", "mkdir")
"""functions of os whose first argument is a path"""
BY_NUMBER = ("fsync", "write")
"""functions of os whose first argument is an open file"""


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes inside: writing fails where a full disk fails."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FailingFolder:
    """Fails calls that concern a folder.

    Args:
        folder: Paths below it, and open files, are concerned.
        seed: Decides which calls; threads take turns at its numbers, so a seed repeats an attempt
            only roughly.
        rate: Share of the calls that fail.
        slow: Share of the calls that take a few milliseconds first.
    """

    def __init__(self, folder: Path, seed: int, rate: float, slow: float = 0.0):
        self.folder, self.rate, self.slow = str(folder), rate, slow
        self.random = random.Random(seed)
        self.failed: list[str] = []

    def _perhaps(self, name: str, path: object) -> None:
        if isinstance(path, (str, bytes, os.PathLike)):
            path = os.fsdecode(os.fspath(path))
            if not path.startswith(self.folder):
                return
        if self.random.random() < self.slow:
            time.sleep(self.random.random() * 0.005)
        if self.random.random() < self.rate:
            code = self.random.choice(ERRORS)
            self.failed.append(f"{name} {path}: {errno.errorcode[code]}")
            if isinstance(path, str):
                raise OSError(code, os.strerror(code), path)
            raise OSError(code, os.strerror(code))

    def _wrapped(self, name: str, function):
        def call(path, *args, **kwargs):
            self._perhaps(name, path)
            return function(path, *args, **kwargs)

        return call

    @contextlib.contextmanager
    def failing(self) -> Iterator[FailingFolder]:
        """Let calls fail inside."""
        with contextlib.ExitStack() as stack:
            for name in (*BY_NAME, *BY_NUMBER):
                function = self._wrapped(name, getattr(os, name))
                stack.enter_context(mock.patch.object(os, name, function))
            opening = self._wrapped("open", io.open)
            stack.enter_context(mock.patch.object(io, "open", opening))
            stack.enter_context(mock.patch.object(builtins, "open", opening))
            yield self
