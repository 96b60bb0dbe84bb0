"""Names of files and folders: what exists, and writing that leaves no partial file behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""suffixes of image files that can be written, in lower case"""
READ_SUFFIXES = (*SUFFIXES, ".webp", ".avif", ".heic", ".heif", ".jxl", ".exr", ".npy")
"""suffixes of image files for which folders are searched; other kinds are read if they are named"""
DEEP_SUFFIXES = (".png", ".tif", ".tiff")
"""suffixes of formats that hold 16 bits"""
VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".m4v", ".ts")
"""suffixes of video files, which are not images"""

_RESERVED = '<>:"|?*/\\'
_DEVICES = {
    *("CON", "PRN", "AUX", "NUL"),
    *(f"{name}{n}" for name in ("COM", "LPT") for n in "123456789¹²³"),
}


class ImageFileError(ValueError):
    """A file or folder cannot be read, written or paired; the message names it and the fix."""


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write data so that the path has the old or the new file, never a part; return the path.

    Makes the folder if it is missing, follows symbolic links and refuses to replace anything
    but a regular file.

    Raises:
        ImageFileError: The file could not be written; the message says why.
    """
    path = check_path(path)
    if why := reserved(path.name):
        raise ImageFileError(f"{path}: {why}; choose another name")
    if (found := look(path)) is not None and not stat.S_ISREG(found.st_mode):
        raise ImageFileError(f"{path}: exists and is not a regular file; choose another name")
    target = Path(os.path.realpath(path))
    _make_dir(target.parent)
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise ImageFileError(
            f"{path}: cannot be written in {target.parent} ({error.strerror}); choose a folder "
            "that you may write to and that has room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync_dir(target.parent)
    return path


def ensure_writable_dir(path: str | os.PathLike[str]) -> Path:
    """Make the folder if it is missing and prove by a file that it can be written to.

    If the system allows it, that file has no name, so that a kill leaves nothing behind.

    Raises:
        ImageFileError: The folder cannot be made or written to.
    """
    path = check_path(path)
    _make_dir(path)
    try:
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ImageFileError(
            f"{path}: the folder cannot be written to ({error.strerror}); choose another"
        ) from error
    return path


def look(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Find out what a name leads to; None if nothing is there, or a link to nothing.

    Raises:
        ImageFileError: The name is not valid, is too long, leads in a circle or through a folder
            that may not be entered, or the disk fails.
    """
    path = check_path(path)
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ImageFileError(
            f"{path}: cannot be reached ({error.strerror}); give another name"
        ) from error


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a folder of that name; ImageFileError as `look` raises it."""
    found = look(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a regular file of that name; ImageFileError as `look` raises it."""
    found = look(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_picture(path: Path) -> bool:
    """Return whether a name from a folder is that of an image file: by its suffix, not hidden.

    A folder, a pipe or a dangling link of such a name counts: reading it fails, and only its own
    pair fails with it.
    """
    return path.suffix.lower() in READ_SUFFIXES and not path.name.startswith(".")


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Return those of a folder's files that are images, in their order.

    If an image of a usual kind has the same stem as another file, that is a copy or an extra, and
    is left out: ``a.npy`` beside ``a.png``.
    """
    found = list(filter(is_picture, paths))
    usual = {(p.parent, p.stem) for p in found if p.suffix.lower() in SUFFIXES}
    return [p for p in found if p.suffix.lower() in SUFFIXES or (p.parent, p.stem) not in usual]


def few(names: Sequence[str], limit: int = 5, separator: str = ", ") -> str:
    """Join the first names for an error message, with a count of the others; "none" for none."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (separator.join(names[:limit]) or "none") + more


def check_path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: got {type(path).__name__}, expected a str or pathlib.Path")
    if not os.fspath(path) or "\0" in str(path):
        raise ImageFileError(f"path: got {path!r}, expected the name of a file or folder")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ImageFileError(
            f"{str(path)!a}: has characters that no file name here can have; rename it"
        ) from None
    return Path(path)


def reserved(name: str, windows: bool = os.name == "nt") -> str:
    """Say why Windows would write a file of that name elsewhere or not at all; "" if it does not.

    ``NUL.png`` is a device there, ``a:b.png`` a hidden stream of the file ``a``, and the dot at the
    end of ``a.`` is dropped. On other systems every name can be a file's.
    """
    if not windows:
        return ""
    if found := sorted({c for c in name if c in _RESERVED or ord(c) < 32}):
        return f"Windows has no {' '.join(found)!r} in names"
    if name.partition(".")[0].rstrip(" ").upper() in _DEVICES:
        return "Windows reserves that name for a device"
    return "Windows drops a dot or space at the end" if name[-1:] in (".", " ") else ""


def split_suffix(name: str) -> tuple[str, str]:
    """Split the name of a file, without folders, as `os.path.splitext` does in four times as long.

    Names are split several times for each of a million files.
    """
    stem, dot, suffix = name.rpartition(".")
    if stem and (stem[0] != "." or stem.strip(".")):
        return stem, dot + suffix
    return name, ""


def as_told_apart(name: str, folds: bool = os.name == "nt" or sys.platform == "darwin") -> str:
    """Map all names of one file to one text: ``A.png`` is ``a.png`` on Windows and macOS.

    There, the encoding of an accent makes no difference either. A disk on macOS may be formatted to
    tell case apart; there two such names are refused needlessly.
    """
    return unicodedata.normalize("NFC", name).casefold() if folds else name


_made: list[Path] | None = None
"""folders that `_make_dir` has made in this process, while `emptied_on_failure` needs to know"""


@contextlib.contextmanager
def emptied_on_failure() -> Iterator[None]:
    """If the block fails, remove the folders that it made and left empty.

    An exception with an ``exit_code`` of 0 is not a failure. Only one caller at a time in a process
    may use it.
    """
    global _made
    before, _made = _made, []
    try:
        yield
    except BaseException as error:
        if getattr(error, "exit_code", 1) != 0:
            for folder in sorted({*_made}, key=lambda path: len(path.parts), reverse=True):
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()
        raise
    finally:
        _made = before


def _make_dir(path: Path) -> None:
    new = []
    try:
        if _made is not None and not path.is_dir():
            new = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageFileError(
            f"{path}: the folder cannot be made ({error.strerror}); choose another"
        ) from error
    finally:
        if _made is not None:
            _made.extend(map(Path.absolute, new))


def _sync_dir(path: Path) -> None:
    """Make the new name survive a crash, if the system can sync a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
