"""The names that a video has while it is written, so that nothing that exists is written over.

A part is called NAME.part-PROCESS-RANDOM.SUFFIX and is made anew by each run. One run at a time
writes an output: it holds a lock on a hidden file beside it, which the system lets go when the
process ends, however it ends. Parts of runs that were killed play, stay, and are named to the next
run.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from ..images.doubts import warn
from .frames import VideoError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Output:
    """A file that is to be written: its lock, and its part until it is complete.

    Raises:
        VideoError: Another run writes the same file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = _locked(path)
        try:
            self.part = _new_part(path)
        except OSError as error:
            self._unlock()
            raise VideoError(
                f"{path}: cannot be written ({error.strerror or error}); choose another folder"
            ) from error
        for old in _left_over(path, self.part):
            warn(f"{old} is left from a run that did not end; it plays, and is left alone")

    def complete(self) -> None:
        """Give the part, which is closed, its name once it is on the disk; OSError if not."""
        with self.part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self.part, self.path)
        with contextlib.suppress(OSError):  # not every folder can be synced
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        self._unlock()

    def leave(self, *, empty: bool) -> Path | None:
        """End without a complete file; the part that is left, None if it was empty or is gone."""
        if empty:
            with contextlib.suppress(OSError):
                self.part.unlink()
        self._unlock()
        return self.part if self.part.exists() else None

    def _unlock(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._lock.name)
            self._lock.close()
            self._lock = None


def refuse_to_replace(out: str | os.PathLike[str], inputs: Iterable[Any]) -> None:
    """Raise VideoError where an output is an input, by whatever name, or the folder of one.

    Links, symbolic or hard, and folders that take A for a are seen through.
    """
    for source in inputs:
        for path in _files(source):
            if _same(out, path) or (Path(out).is_dir() and _same(out, path.parent)):
                raise VideoError(f"out is {out}, which is an input ({path}); choose another name")


def _files(source: Any) -> list[Path]:
    """The files and folders that a stream is read from; URLs and arrays have none."""
    items = source if isinstance(source, list | tuple) else [source]
    return [
        Path(item)
        for item in items
        if isinstance(item, str | os.PathLike) and "://" not in str(item)
    ]


def _same(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):  # one does not exist
        return os.path.abspath(a) == os.path.abspath(b)


def _new_part(path: Path) -> Path:
    """Make an empty file of a name that nothing has."""
    while True:
        part = path.with_name(f"{path.stem}.part-{os.getpid()}-{secrets.token_hex(3)}{path.suffix}")
        with contextlib.suppress(FileExistsError):
            part.open("xb").close()
            return part


def _left_over(path: Path, own: Path) -> list[Path]:
    """Parts of the output that earlier runs left, oldest first."""
    start = f"{path.stem}.part-"
    with contextlib.suppress(OSError):
        found = [
            file
            for file in path.parent.iterdir()
            if file.name.startswith(start) and file.suffix == path.suffix and file != own
        ]
        return sorted(found, key=lambda file: file.stat().st_mtime)
    return []


def _locked(path: Path) -> IO[str] | None:
    """Lock the output; None where the system or the file system has no locks."""
    if fcntl is None:
        return None
    name = path.with_name(f".{path.name}.lock")
    while True:
        try:
            file = name.open("a+")
        except OSError as error:
            raise VideoError(
                f"{path}: cannot be written ({error.strerror or error}); choose another folder"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            process = file.read().strip() or "another"
            file.close()
            raise VideoError(
                f"out is {path}, which process {process} is writing; wait for it, or choose "
                "another name"
            ) from None
        except OSError:
            file.close()
            return None
        if _is_still(file, name):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            return file
        file.close()  # its holder unlinked it as we opened it


def _is_still(file: IO[str], name: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), name.stat())
    except OSError:
        return False
