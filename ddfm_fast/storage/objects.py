"""Look at, list, read, write and delete objects behind URLs, with retries where they may help."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import random
import secrets
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .trouble import StorageError, explained, may_be_tried_again, missing
from .urls import join, schemes

TRIES = 4
FIRST_PAUSE = 0.5
"""seconds before the second try; doubled before each later one, and varied by a fifth"""
WRITTEN_WHOLE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
"""schemes whose objects appear when all of their bytes are there"""
READ_ONLY = ("http", "https", "zip", "tar", "libarchive", "github", "git", "data", "reference")
NOT_LISTED = ("http", "https")
_OWN_RETRIES = ("s3", "s3a")
_LISTED_FROM = 16
"""objects from which on a listing is cheaper than a look at each"""
_LOOKS = 8
"""that are under way at once"""
_CONNECT, _READ = 10, 60  # seconds

Result = TypeVar("Result")


class Object(NamedTuple):
    """An object, or a prefix with objects below it."""

    url: str
    size: int = 0
    """in bytes"""
    version: str = ""
    """what differs when the content does: the ETag, a checksum or the time; "" where unknown"""
    is_prefix: bool = False

    @property
    def state(self) -> str:
        """Size and version as one text, for records."""
        return f"{self.size} {self.version}".strip()


def look(url: str) -> Object | None:
    """Find out what a URL leads to; None if nothing is there.

    Raises:
        StorageError: It cannot be found out, for the reason that the message gives.
        ImportError: A library is missing.
    """

    def attempt() -> Object | None:
        system, path = _system(url)
        system.invalidate_cache()
        try:
            return _object(url, system.info(path))
        except FileNotFoundError as error:
            if path.rstrip("/") in ("", system.root_marker):
                return Object(url, is_prefix=True)
            if _is_simply_absent(error):
                return None
            raise

    return _tried(attempt, url, "read")


def listing(url: str) -> dict[str, Object]:
    """List all objects below a prefix: their names below it, in order; none is no error.

    Raises:
        StorageError: It cannot be listed.
        ImportError: A library is missing.
    """
    if schemes(url)[0] in NOT_LISTED:
        raise StorageError(f"{url}: a web server lists no files; give a manifest of their URLs")

    def attempt() -> dict[str, Object]:
        system, path = _system(url)
        system.invalidate_cache()
        try:
            found = system.find(path, detail=True)
        except FileNotFoundError as error:
            if _is_simply_absent(error):
                return {}
            raise
        root = path.rstrip("/") + "/" if path.strip("/") else path
        return {
            name: _object(join(url, name), info)
            for key, info in sorted(found.items())
            if (name := key.removeprefix(root).lstrip("/"))
        }

    return _tried(attempt, url, "listed")


def existing(urls: Collection[str]) -> set[str]:
    """Return those of some URLs that lead to an object: by a listing, if they are many.

    Raises:
        StorageError: It cannot be found out.
        ImportError: A library is missing.
    """
    above = os.path.commonprefix([*urls]).rpartition("/")[0]
    is_deep = len(above.partition("://")[2]) > 0 and not any("::" in url for url in urls)
    if len(urls) >= _LISTED_FROM and is_deep and schemes(above)[0] not in NOT_LISTED:
        return {one.url for one in listing(above).values()} & {*urls}
    with ThreadPoolExecutor(_LOOKS, "ddfm-objects") as pool:
        found = pool.map(look, urls)
        return {one.url for one in found if one is not None and not one.is_prefix}


def read(url: str) -> bytes:
    """Read an object.

    Raises:
        StorageError: It cannot be read.
        ImportError: A library is missing.
    """

    def attempt() -> bytes:
        system, path = _system(url)
        return bytes(system.cat_file(path))

    return _tried(attempt, url, "read")


def fetch(url: str, target: Path) -> Path:
    """Copy an object to a local file, which appears when it is whole.

    Args:
        url: The object.
        target: The file, in an existing folder; an existing file is replaced.

    Raises:
        StorageError: It cannot be read.
        OSError: The file cannot be written.
        ImportError: A library is missing.
    """
    partial = target.with_name(f".{secrets.token_hex(8)}.tmp")

    def attempt() -> None:
        system, path = _system(url)
        system.get_file(path, str(partial))

    try:
        _tried(attempt, url, "read")
        if not partial.is_file():  # a prefix
            raise StorageError(f"{url}: is a folder, expected an object")
        os.replace(partial, target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return target


def put(url: str, data: bytes) -> str:
    """Write an object so that the name holds the old or the new one, never a part.

    Returns:
        Its version, as a listing has it; "" where the service does not name it in its answer.

    Raises:
        StorageError: It cannot be written.
        ImportError: A library is missing.
    """
    check_writable(url)

    def attempt() -> str:
        system, path = _system(url)
        if schemes(url)[0] in WRITTEN_WHOLE:
            answer = system.pipe_file(path, data)
            return str(answer.get("ETag", "")).strip('"') if isinstance(answer, dict) else ""
        _put_and_move(system, path, data)
        return ""

    return _tried(attempt, url, "written")


def put_file(url: str, file: Path) -> None:
    """Write an object from a local file, as :func:`put` does, without holding it in memory.

    Raises:
        StorageError: It cannot be written.
        OSError: The file cannot be read.
        ImportError: A library is missing.
    """
    check_writable(url)
    with file.open("rb"):  # its own trouble is no service's
        pass

    def attempt() -> None:
        system, path = _system(url)
        if schemes(url)[0] in WRITTEN_WHOLE:
            system.put_file(str(file), path)
        else:
            _put_and_move(system, path, file)

    _tried(attempt, url, "written")


def remove(url: str) -> None:
    """Delete an object; that it is not there is no error.

    Raises:
        StorageError: It cannot be deleted.
        ImportError: A library is missing.
    """
    check_writable(url)

    def attempt() -> None:
        system, path = _system(url)
        try:
            system.rm_file(path)
        except FileNotFoundError as error:
            if not _is_simply_absent(error):
                raise

    _tried(attempt, url, "deleted")


def check_writable(url: str) -> None:
    """Refuse URLs of what is only read.

    Raises:
        StorageError: It is one of them.
    """
    if (scheme := schemes(url)[0]) in READ_ONLY:
        raise StorageError(
            f"{url}: {scheme}:// is read-only; write to a local folder, s3://, gs:// or az://"
        )


def _put_and_move(system: Any, path: str, data: bytes | Path) -> None:
    folder, slash, _ = path.rpartition("/")
    temporary = f"{folder}{slash}.{secrets.token_hex(8)}.tmp"
    if folder:
        system.makedirs(folder, exist_ok=True)
    try:
        if isinstance(data, Path):
            system.put_file(str(data), temporary)
        else:
            system.pipe_file(temporary, data)
        system.mv(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):
            system.rm_file(temporary)
        raise


def _tried(attempt: Callable[[], Result], url: str, what: str) -> Result:
    """Run it, up to `TRIES` times where another try may help; errors become `explained` ones."""
    for tried in range(1, TRIES + 1):
        try:
            return attempt()
        except Exception as error:  # libraries of services fail in every way there is
            if tried == TRIES or not may_be_tried_again(error):
                raise explained(error, url, what, tried) from error
            time.sleep(FIRST_PAUSE * 2 ** (tried - 1) * random.uniform(0.8, 1.2))
    raise AssertionError("unreachable")


def _system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it."""
    try:
        core = importlib.import_module("fsspec.core")
    except ImportError as error:
        raise missing(url, ImportError("fsspec")) from error
    # looking for the kind of a bucket it would ask for credentials that a public one does not need
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    if (logger := logging.getLogger("gcsfs")).level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)  # it logs what it raises, with tracebacks
    options = {scheme: _once(scheme) for scheme in schemes(url) if scheme in _OWN_RETRIES}
    system, path = core.url_to_fs(url, **options)
    for one in (system, getattr(getattr(system, "fo", None), "fs", None)):
        if one is not None and hasattr(one, "retries"):
            one.retries = 1
    return system, path


def _once(scheme: str) -> dict[str, Any]:
    """Options by which the library of S3 tries once, as tries are counted here."""
    given = importlib.import_module("fsspec.config").conf.get(scheme, {}).get("config_kwargs", {})
    return {
        "config_kwargs": {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": _CONNECT,
            "read_timeout": _READ,
            **given,
        }
    }


def _is_simply_absent(error: BaseException) -> bool:
    """Return whether the object alone is not there: not its bucket."""
    return not getattr(explained(error, "", "read"), "is_common", False)


def _object(url: str, info: dict[str, Any]) -> Object:
    names = ("ETag", "etag", "md5Hash", "content_md5", "CRC", "Last-Modified", "mtime", "created")
    version = next((str(info[name]) for name in names if info.get(name)), "")
    return Object(url, int(info.get("size") or 0), version.strip('"'), info["type"] == "directory")
