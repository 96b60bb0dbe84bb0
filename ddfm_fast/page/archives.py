"""ZIP files from strangers: what they hold, unpacked within limits and below one folder."""

from __future__ import annotations

import contextlib
import errno
import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..files.paths import READ_SUFFIXES, ImageFileError

_CHUNK = 1 << 20
_HIDDEN = ("__MACOSX",)
"""folders that macOS adds to archives"""
_NO_NAME = {errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL}
"""the system's errors for names that are impossible, together or at all"""
_LONGEST = 200
"""most characters of a part of a name"""
_RESERVED = {"con", "prn", "aux", "nul", *(f"{a}{n}" for a in ("com", "lpt") for n in range(10))}
"""names that are devices on Windows"""


@dataclass(frozen=True)
class Bounds:
    """Limits of an archive, which its own directory may lie about: bytes are counted as they come.

    Whoever accepts the file limits its compressed size.
    """

    files: int = 2000
    bytes: int = 2**32
    """of all files together, unpacked"""


def unpack(archive: Path, folder: Path, bounds: Bounds | None = None) -> list[Path]:
    """Unpack the image files of an archive below a folder, which holds nothing else.

    Hidden files, folders of macOS and files of other kinds are left out.

    Args:
        archive: The ZIP file.
        folder: An empty folder.
        bounds: What it may hold.

    Returns:
        The files.

    Raises:
        ImageFileError: It is not a ZIP file, is damaged or encrypted, has names that lead elsewhere
            or occur twice, holds more than the limits allow, or has no image.
    """
    bounds = bounds or Bounds()
    try:
        with zipfile.ZipFile(archive) as file:
            return _unpack(file, archive.name, folder, bounds)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise ImageFileError(
            f"{archive.name}: is not a ZIP file that can be read ({error}); pack it again"
        ) from None


def _unpack(file: zipfile.ZipFile, name: str, folder: Path, bounds: Bounds) -> list[Path]:
    chosen: dict[str, tuple[zipfile.ZipInfo, Path]] = {}
    for info in file.infolist():
        parts = _checked_parts(info, name)
        if info.is_dir() or parts is None:
            continue
        key = "/".join(parts).casefold()
        if key in chosen:
            raise ImageFileError(f"{name}: has {info.filename!r} twice; pack it again with one")
        chosen[key] = info, folder.joinpath(*parts)
        if len(chosen) > bounds.files:
            raise ImageFileError(
                f"{name}: holds more than {bounds.files} pictures; send it in parts"
            )
    if not chosen:
        kinds = ", ".join(suffix.lstrip(".") for suffix in READ_SUFFIXES)
        raise ImageFileError(f"{name}: holds no picture; expected files of {kinds}")
    left = bounds.bytes
    for info, path in chosen.values():
        try:
            left -= _write(file, info, path, left, f"{name}: holds more than {bounds.bytes} bytes")
        except OSError as error:
            if error.errno not in _NO_NAME:
                raise
            raise ImageFileError(
                f"{name}: {info.filename[:80]!r} cannot be unpacked ({error.strerror}); pack it "
                "again with shorter names, of which none is a file's and a folder's"
            ) from None
    return [path for _, path in chosen.values()]


def _checked_parts(info: zipfile.ZipInfo, name: str) -> tuple[str, ...] | None:
    """Return the parts of an image's name below the folder; None for what is left out."""
    given = info.filename.replace("\\", "/")
    parts = PurePosixPath(given).parts
    odd = any(
        part in ("..", "/")
        or ":" in part
        or not part.isprintable()
        or len(part) > _LONGEST
        or part.split(".")[0].strip().lower() in _RESERVED
        for part in parts
    )
    if odd or given.startswith("/") or not parts:
        raise ImageFileError(
            f"{name}: has the name {given[:80]!r}, which leads out of the archive or is not a "
            "file's; pack it again with plain names"
        )
    if stat.S_ISLNK(info.external_attr >> 16):
        raise ImageFileError(f"{name}: {given[:80]!r} is a link; pack the file itself")
    if info.flag_bits & 1:
        raise ImageFileError(f"{name}: is encrypted; pack it again without a password")
    hidden = any(part.startswith(".") or part in _HIDDEN for part in parts)
    return None if hidden or Path(parts[-1]).suffix.lower() not in READ_SUFFIXES else parts


def _write(file: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, most: int, what: str) -> int:
    """Unpack one file; return its size in bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with file.open(info) as packed, path.open("xb") as out:
        while chunk := packed.read(_CHUNK):
            count += len(chunk)
            if count > most:
                raise ImageFileError(f"{what} when it is unpacked; send it in parts")
            out.write(chunk)
    return count


def root_of(folder: Path) -> Path:
    """Return the folder, or its only subfolder if that holds everything, as in many archives."""
    while True:
        found = list(folder.iterdir())
        if len(found) != 1 or not found[0].is_dir():
            return folder
        folder = found[0]


def pack(files: Iterable[tuple[str, Path]], archive: Path) -> Path:
    """Write files under names into an archive; pictures, already compressed, are just stored."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
        for name, path in files:
            info = zipfile.ZipInfo(name)  # has a fixed date: the same pictures give the same bytes
            info.external_attr = 0o644 << 16
            with path.open("rb") as file, out.open(info, "w") as packed:
                while chunk := file.read(_CHUNK):
                    packed.write(chunk)
    with contextlib.suppress(OSError):
        archive.chmod(0o600)
    return archive
