"""The names and locks of a video's output files, so that nothing that exists is overwritten.

A part is called NAME.part-PROCESS-RANDOM.SUFFIX, and each run makes its own. Only one run at a time
writes an output: it holds a lock on a hidden file, which the system releases when the process ends,
however it ends. Parts of killed runs are playable and stay; the next run names them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from ..files.paths import is_file, look
from ..images.doubts import warn
from ..runtime.own_files import open_own
from .frames import VideoError
from .opening import address, local

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LONGEST = 255
"""most bytes of a name, on all but a few file systems"""
PLAYLISTS = {".ffconcat", ".concat", ".m3u8", ".m3u", ".txt"}
MOST_NESTED, MOST_LISTED = 3, 2**20
"""most nested playlists that are read, and most characters of each"""
ISO = (".mp4", ".m4v", ".mov")
_FRAGMENTS = {"movflags": "+hybrid_fragmented+frag_every_frame+negative_cts_offsets"}
_EVERY_FRAME = {**dict.fromkeys(ISO, _FRAGMENTS), ".mkv": {"cluster_time_limit": "1"}}
"""muxer options that write each encoded frame to the file at once"""
_MARK = ".part-"
_FOLDER_LOCK = ".ddfm_fast_video.lock"


class OutputBusy(VideoError):
    """Another process is writing the output."""


class Lock:
    """The right of one process at a time to write an output, until it is released.

    If the system or the file system has no locks, nothing is held.

    Args:
        output: What is written: a file, with the lock beside it, or a folder, with the lock in it.
        folder: Whether it is a folder, which must exist.

    Raises:
        OutputBusy: Another run is writing it.
        VideoError: A lock cannot be made there.
    """

    def __init__(self, output: Path, *, folder: bool = False):
        self._name = output / _FOLDER_LOCK if folder else _beside(output, ".", "", ".lock")
        self._file = _locked(self._name, output)

    @property
    def holds(self) -> bool:
        """Whether the lock still exists; False once its folder is gone or was replaced."""
        return self._file is None or _is_still(self._file, self._name)

    @property
    def alone(self) -> bool:
        """Whether it is certain that no other run is writing the output."""
        return self._file is not None

    def let_go(self) -> None:
        """Release the lock; do nothing if it is gone."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                if self.holds:
                    os.unlink(self._name)
            self._file.close()
            self._file = None


class Output:
    """A file to write: its lock, and its part until it is complete.

    Raises:
        VideoError: Another run is writing the same file, or no such file is possible.
    """

    format = None
    """of the container; None: by the suffix"""
    _whole = 0
    """bytes of the part up to the last mark"""

    def __init__(self, path: Path):
        self.path, self.suffix = path, path.suffix.lower()
        self.options = dict(_EVERY_FRAME.get(self.suffix, {}))
        if look(path) is not None and not is_file(path):
            raise VideoError(f"out is {path}, which is not a regular file; choose another name")
        self._lock = Lock(path)
        try:
            self.part = new_part(path)
        except OSError as error:
            self._lock.let_go()
            raise _unwritable(path, error) from error
        self.target = address(self.part)
        for old in _left_over(path, self.part):
            if self._lock.alone and _size(old) == 0:
                with contextlib.suppress(OSError):
                    old.unlink()
            else:
                warn(f"{old} is left from a run that did not finish; it is not touched")

    def mark(self) -> None:
        """Note that the part is whole up to here, so that `take_back` can return to it."""
        if (size := _size(self.part)) is not None and size >= 0:
            self._whole = size

    def take_back(self) -> None:
        """Cut the closed part back to the last mark after a write that failed."""
        with contextlib.suppress(OSError):
            os.truncate(self.part, self._whole)

    def complete(self) -> None:
        """Give the closed part its final name once it is on the disk; OSError if that fails."""
        with self.part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self.part, self.path)
        with contextlib.suppress(OSError):  # not every folder can be synced
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        self._lock.let_go()

    def leave(self, *, empty: bool) -> Path | None:
        """End without a complete file; return the part that is left, None if empty or gone."""
        if empty:
            with contextlib.suppress(OSError):
                self.part.unlink()
        self._lock.let_go()
        return None if _size(self.part) is None else self.part


class Inputs:
    """The files from which streams are read, and their folders, under whatever name.

    Links, symbolic or hard, and folders that ignore case are resolved, and so are FFmpeg's prefixes
    (file:, concat:, …), playlists, and folders of links.
    """

    def __init__(self, sources: Iterable[Any]):
        self._files: dict[tuple, Path] = {}
        self._folders: dict[tuple, Path] = {}
        for source in sources:
            for path in _files(source):
                self._files[_identity(path)] = path
                self._folders[_identity(path.parent)] = path

    def refuse(self, out: str | os.PathLike[str]) -> None:
        """Raise VideoError if an output is one of them, or the folder of one."""
        found = self._files.get(_identity(out))
        if found is None and os.path.isdir(out):
            found = self._folders.get(_identity(out))
        if found is not None:
            raise VideoError(f"out is {out}, which is an input ({found}); choose another name")


def _files(source: Any, depth: int = 0) -> list[Path]:
    """Return the files from which a stream may be read; names without a file do no harm."""
    items = source if isinstance(source, list | tuple) else [source]
    found: list[Path] = []
    for item in items:
        if isinstance(item, str | os.PathLike):
            path = local(item)
            paths = [path] if path is not None else [Path(name) for name in _names(str(item))]
            found += paths + [path for each in paths for path in _behind(each, depth)]
    return found


def _names(text: str) -> list[str]:
    """Return a name, and the names without FFmpeg's prefixes: file:NAME, concat:NAME|NAME."""
    parts = text.split("|") if "|" in text else [text]
    rests = [part[at + 1 :] for part in parts for at, c in enumerate(part) if c == ":"]
    return [text, *parts[1:], *(r[2:] if r.startswith("//") else r for r in rests if r)]


def _behind(path: Path, depth: int) -> list[Path]:
    """Return the targets of a link and of the links in a folder, and the files of a playlist."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        if path.is_dir():
            return [Path(e.path).resolve() for e in os.scandir(path) if e.is_symlink()]
        found = [path.resolve()] if path.is_symlink() else []
        if path.suffix.lower() in PLAYLISTS and path.is_file() and depth < MOST_NESTED:
            with path.open(encoding="utf-8", errors="replace") as file:
                lines = file.read(MOST_LISTED).splitlines()
            words = [re.sub(r"^file\s+|['\"]", "", line.strip()) for line in lines]
            names = [path.parent / word for word in words if word and not word.startswith("#")]
            found += _files(names, depth + 1) + _files(words, depth + 1)
        return found
    return []


def _identity(path: str | os.PathLike[str]) -> tuple:
    """Return an identity that is equal for two names of one file, even if it does not exist."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return (os.path.abspath(path),)
    return facts.st_dev, facts.st_ino


def _size(path: Path) -> int | None:
    """Return the bytes of a file; None if it is gone, -1 if unknown."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
    except OSError:
        return -1


def _unwritable(path: Path, error: OSError) -> VideoError:
    why = error.strerror or error
    return VideoError(f"{path}: cannot be written ({why}); choose another folder")


def _beside(path: Path, before: str, between: str, after: str) -> Path:
    """Join BEFORE + the stem + BETWEEN + AFTER in the same folder; shorten it if it is too long."""
    stem = path.stem if between else path.name
    room = _LONGEST - len(os.fsencode(before + between + after))
    if len(name := os.fsencode(stem)) > room:
        few = name[: room - 9].decode(errors="ignore")
        stem = f"{few}~{hashlib.sha256(name).hexdigest()[:8]}"
    return path.with_name(f"{before}{stem}{between}{after}")


def new_part(path: Path) -> Path:
    """Make an empty file with an unused name."""
    while True:
        part = _beside(path, "", f"{_MARK}{os.getpid()}-{secrets.token_hex(3)}", path.suffix)
        with contextlib.suppress(FileExistsError):
            part.open("xb").close()
            return part


def _left_over(path: Path, own: Path) -> list[Path]:
    """List parts of the output that earlier runs left, oldest first."""
    start = own.name.rpartition(_MARK)[0] + _MARK
    with contextlib.suppress(OSError):
        found = [
            file
            for file in path.parent.iterdir()
            if file.name.startswith(start) and file.suffix == path.suffix and file != own
        ]
        return sorted(found, key=lambda file: file.stat().st_mtime)
    return []


def _locked(name: Path, output: Path) -> IO[str] | None:
    """Lock the output by a file; None if the system or the file system has no locks."""
    if fcntl is None:
        return None
    while True:
        try:
            file = os.fdopen(open_own(name), "r+")
        except OSError as error:
            raise _unwritable(output, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            process = file.read().strip() or "another"
            file.close()
            raise OutputBusy(
                f"out is {output}, which process {process} is writing; wait for it, or choose "
                "another name"
            ) from None
        except OSError:
            file.close()
            return None
        if _is_still(file, name):
            with contextlib.suppress(OSError):  # a full disk: the lock holds without a number
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), str(os.getpid()).encode())
            return file
        file.close()  # its holder unlinked it as we opened it


def _is_still(file: IO[str], name: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), name.stat())
    except OSError:
        return False
