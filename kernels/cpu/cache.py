"""Where compiled libraries are kept, and the check that a library is what was compiled.

The folder belongs to the user alone (mode 0700), since what is loaded from it runs as the user,
and nobody else can replace it or a folder above it. A library's name ends in the hash of its
content, which is checked before it is loaded: a file that was cut short or replaced is thrown
away and compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from ddfm_fast.runtime import environment

VARIABLE = "DDFM_FAST_CACHE"
SUFFIX = ".so"
ROOM = 1 << 20
"""bytes that a folder must have free before a library is compiled into it"""
_LINKS = 40
"""most links that are followed on the way to a folder, as many as Linux follows"""
_HASH = 24
"""hexadecimal digits of a hash in a name"""


def folder() -> Path:
    """Return the cache's folder, which may be missing: $DDFM_FAST_CACHE or ~/.cache/ddfm_fast."""
    if chosen := environment.set_values().get(VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ddfm_fast"


def usable_folder() -> Path | None:
    """Return the folder, made if missing; None if it cannot be trusted or written to."""
    try:
        path = folder()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path if refusal(path) is None else None
    except (OSError, RuntimeError):
        return None


def refusal(path: Path) -> str | None:
    """Return why nothing is loaded from an existing folder; None if all is well.

    If others may read the user's folder, as earlier versions made it, it is closed to them.
    Nobody else may be able to put another in its place: see `_exchangeable`.
    """
    found, user = path.lstat(), _user()
    if not stat.S_ISDIR(found.st_mode):
        return f"{path} is a link or a file, not a folder"
    if user is None:
        return f"{path} has no owner that could be compared: kernels are built for Linux only"
    if found.st_uid != user:
        return f"{path} belongs to another user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{path} can be written to by others: chmod 700 {path}"
    if (reason := _exchangeable(path)) is not None:
        return reason
    if _runs_no_code(path):
        return f"{path} lies on a file system from which no code may run (noexec): choose another"
    if found.st_mode & 0o777 != 0o700:
        path.chmod(0o700)
    return None if os.access(path, os.W_OK | os.X_OK) else f"{path} cannot be written to"


def _runs_no_code(path: Path) -> bool:
    """Return whether the folder's file system is mounted so; Windows has none that is."""
    if hasattr(os, "statvfs"):
        return bool(os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0))
    return False


def _user() -> int | None:
    """Return the number of the user; None on Windows, which has none."""
    return os.getuid() if hasattr(os, "getuid") else None


def _exchangeable(path: Path) -> str | None:
    """Return which folder above it, links included, lets another user replace the folder.

    Each must belong to the user or to root, and be writable by nobody else unless it is sticky, as
    /tmp is: there only the owner of a name can change it.
    """
    rest = list(reversed((Path.cwd() / path).parts))
    here, followed = Path(rest.pop()), 0
    # in a container root may be a user without a number of its own, who owns / all the same
    trusted = {0, _user(), here.lstat().st_uid}
    while rest:
        found = here.lstat()
        if found.st_uid not in trusted:
            return f"{path} lies in {here}, which belongs to another user"
        if stat.S_ISLNK(found.st_mode):
            if (followed := followed + 1) > _LINKS:
                return f"{path} leads in a circle at {here}"
            target = here.parent / os.readlink(here)
            rest += reversed(target.parts)
            here = Path(rest.pop())
            continue
        shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if shared and not found.st_mode & stat.S_ISVTX:
            return f"{path} lies in {here}, which can be written to by others: choose another"
        here = here / rest.pop()
    return None


def find(path: Path, stem: str) -> Path | None:
    """Find the library of that stem whose hash matches its name; remove the others of it."""
    for candidate in sorted(path.glob(f"{stem}-*{SUFFIX}")):
        if not candidate.is_symlink() and candidate == _named(candidate, stem):
            return candidate
        with contextlib.suppress(OSError):
            candidate.unlink()
    return None


def need_room(partial: Path) -> None:
    """Raise OSError if a new library would not fit: before the seconds that compiling takes."""
    try:
        partial.write_bytes(bytes(ROOM))
    finally:
        partial.unlink(missing_ok=True)


def keep(partial: Path, stem: str) -> Path:
    """Give a finished new library its name in the folder; return its path."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    target = _named(partial, stem)
    os.replace(partial, target)
    return target


def clear() -> list[Path]:
    """Remove what we put into the folder; return the removed files."""
    found = describe()
    if found["refused"] is not None:
        return []
    path = Path(str(found["folder"]))
    gone = []
    for file in sorted(path.glob("cpu-*")):
        with contextlib.suppress(OSError):
            file.unlink()
            gone.append(file)
    return gone


def describe() -> dict[str, object]:
    """Return the folder, why it is not used (or None), and the files and bytes in it."""
    chosen = environment.set_values().get(VARIABLE, "~/.cache/ddfm_fast")
    found: dict[str, object] = {"folder": chosen, "refused": None, "files": 0, "bytes": 0}
    try:
        path = folder()
        found["folder"] = str(path)
        if path.is_dir() or path.is_symlink():
            found["refused"] = refusal(path)
            files = [file for file in path.glob(f"*{SUFFIX}") if file.is_file()]
            found |= {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}
    except OSError as error:  # another user's, or on a system that is gone
        found["refused"] = f"{found['folder']} cannot be looked at: {error.strerror}"
    except RuntimeError as error:  # no home folder
        found["refused"] = f"{chosen} is no folder: {error}"
    return found


def _named(library: Path, stem: str) -> Path:
    digest = hashlib.sha256(library.read_bytes()).hexdigest()[:_HASH]
    return library.with_name(f"{stem}-{digest}{SUFFIX}")
