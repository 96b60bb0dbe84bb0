"""Objects that are kept as local files between processes: checkpoints, which are large.

A file is known by the URL, the size and the version (ETag) of its object, so a changed object is
fetched again. The folder is that of compiled kernels, in ``objects/``.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from ..files.paths import ImageFileError
from .objects import Object, fetch, look
from .trouble import StorageError
from .urls import name_of

_FOLDER = "objects"
_HASH = 24


def found(url: str) -> Object:
    """Find out which object a URL names now.

    Raises:
        StorageError: There is none, or it cannot be reached.
    """
    one = look(url)
    if one is None:
        raise StorageError(f"{url}: no such object; check the name of the bucket and the object")
    if one.is_prefix:
        raise StorageError(f"{url}: is a folder; give the URL of one file in it")
    return one


def cached(url: str) -> Path:
    """Return a local file with the bytes of an object, fetched unless it is already there.

    Raises:
        StorageError: The object cannot be read.
        ImageFileError: There is no room for it.
    """
    one = found(url)
    key = hashlib.sha256(f"{url}\n{one.state}".encode()).hexdigest()[:_HASH]
    file = _folder() / _FOLDER / key / name_of(url)
    if file.is_file() and file.stat().st_size == one.size and one.version:
        return file
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return fetch(url, file)
    except OSError as error:
        raise ImageFileError(
            f"{file}: cannot be written ({error.strerror}); set DDFM_FAST_CACHE to a folder that "
            "has room"
        ) from error


def _folder() -> Path:
    from ..kernels.cpu import cache

    return cache.usable_folder() or Path(tempfile.mkdtemp(prefix="ddfm_fast_"))
