"""Tell URLs of objects from local paths; nothing is loaded or requested here.

Of chained URLs (``zip://ir/0001.png::s3://bucket/a.zip``) the first part names the object.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]+"  # two letters or more: one is a drive of Windows
_URL = re.compile(rf"{_SCHEME}://")
_SWALLOWED = re.compile(rf"{_SCHEME}:/")
_LINKS = re.compile(rf"(^|::)({_SCHEME}):/+")
_PASSWORD = re.compile(r"""(:/{1,2}[^/@\s:"']*):[^/@\s"']+@""")
OBJECTS = (
    "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "memory", "zip", "tar", "libarchive",
)  # fmt: skip
"""schemes that FFmpeg does not open itself"""
_ON_DISK = ("file", "local")
_CHAIN = "::"


def as_url(place: object) -> str | None:
    """Return the URL that a str or a Path is; None for local paths and for anything else.

    ``Path("s3://bucket/a")`` is ``s3:/bucket/a``, which counts unless there is such a local path. A
    key with an empty part (``a//b``) is lost in a Path, but not in a str.
    """
    if isinstance(place, str):
        return place if _URL.match(place) else None
    if not isinstance(place, os.PathLike):
        return None
    text = Path(place).as_posix()
    if not _SWALLOWED.match(text) or os.path.exists(place):
        return None
    return _LINKS.sub(_slashes, text)


def _slashes(match: re.Match[str]) -> str:
    scheme = match[2]
    return f"{match[1]}{scheme}://" + ("/" if scheme in _ON_DISK else "")


def without_password(text: str) -> str:
    """Give a text with ``***`` for the passwords of addresses in it, as it may be logged.

    >>> without_password("rtsp://me:secret@camera:554/a cannot be opened")
    'rtsp://me:***@camera:554/a cannot be opened'
    """
    return _PASSWORD.sub(r"\1:***@", text)


def schemes(url: str) -> list[str]:
    """Return the schemes of a URL and of those it is chained to, in lower case."""
    return [found[1].lower() for found in _LINKS.findall(url)]


def is_object(place: object) -> bool:
    """Return whether a place of a video is an object to be fetched, not an address of FFmpeg's."""
    url = as_url(place)
    return url is not None and (_CHAIN in url or schemes(url)[0] in OBJECTS)


def join(url: str, name: str) -> str:
    """Return the URL of an object below a prefix; a URL stays as it is."""
    if as_url(name):
        return name
    head, chain, rest = url.partition(_CHAIN)
    if not head.endswith("://"):
        head = head.rstrip("/") + "/"
    return f"{head}{name}{chain}{rest}"


def parent(url: str) -> str:
    """Return the prefix that an object lies in."""
    head, chain, rest = url.partition(_CHAIN)
    scheme, _, path = head.partition("://")
    return f"{scheme}://{path.rstrip('/').rpartition('/')[0]}{chain}{rest}"


def name_of(url: str) -> str:
    """Return the last part of an object's name, without a query; "" for the root of a zip file."""
    head = url.partition(_CHAIN)[0]
    scheme, _, path = head.partition("://")
    if scheme in ("http", "https"):
        path = re.split("[?#]", path)[0]
    return PurePosixPath(path).name
