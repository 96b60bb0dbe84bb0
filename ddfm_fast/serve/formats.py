"""The kinds of picture files that a service decodes: each decoder that strangers reach is a risk.

The first bytes decide the kind, as in :mod:`..files.reading`, before any decoder sees the
file. Camera files and TIFFs of rare codecs, which other libraries decode, are kinds of their own.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path

from ..files import arrays, compact, raw
from ..files import tags as t
from ..files.paths import ImageFileError
from .limits import FORMATS, Refused

KINDS = (*FORMATS, "bmp", "webp", "avif", "heic", "jxl", "exr", "npz", "mat", "raw", "rare-tiff")
ALL = "all"
_SAME = {"jpg": "jpeg", "tif": "tiff", "heif": "heic", "dng": "raw"}
_OF_COMPACT = {"WEBP": "webp", "AVIF": "avif", "HEIF": "heic", "JXL": "jxl"}
_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"), (arrays.NPY, "npy"), (b"BM", "bmp"),
    (arrays.ZIP, "npz"), (arrays.MAT, "mat"), (arrays.MAT_HDF, "mat"), (arrays.EXR, "exr"),
)  # fmt: skip
_PILLOW = {
    "png": "PNG", "jpeg": "JPEG", "tiff": "TIFF", "rare-tiff": "TIFF", "bmp": "BMP",
    "webp": "WEBP", "avif": "AVIF",
}  # fmt: skip
_COMMON_CODECS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50000)
"""TIFF's codes of none, fax, LZW, JPEG, Deflate, PackBits, Zstandard"""


def parse_formats(text: str) -> tuple[str, ...]:
    """Read ``--formats``: names with commas between them, or ``all``.

    Raises:
        ValueError: There is no such name.
    """
    words = [_SAME.get(word, word) for part in text.split(",") if (word := part.strip().lower())]
    if words == [ALL]:
        return KINDS
    if unknown := [word for word in words if word not in KINDS]:
        raise ValueError(f"--formats has {unknown[0]!r}; expected some of {', '.join(KINDS)}")
    if not words:
        raise ValueError(f"--formats is empty; expected some of {', '.join(KINDS)}, or all")
    return tuple(dict.fromkeys(words))


def kind_of(data: bytes) -> str:
    """Name the kind of a file, one of `KINDS`; "" for what is none of them."""
    if data.startswith(t.SIGNATURES):
        return _kind_of_tiff(data)
    if found := compact.kind_of(data[:64]):
        return _OF_COMPACT[found]
    return next((kind for start, kind in _STARTS if data.startswith(start)), "")


def _kind_of_tiff(data: bytes) -> str:
    try:
        tags = t.read_tags(io.BytesIO(data), Path("picture"))
    except ImageFileError:
        return "tiff"  # reading it says what is wrong, before anything is decoded
    if raw.is_raw(tags):
        return "raw"
    return "tiff" if tags.one(t.COMPRESSION, 1) in _COMMON_CODECS else "rare-tiff"


def pillow_formats(data: bytes) -> tuple[str, ...]:
    """Return the only format that Pillow may take a file for; none if it does not read the kind."""
    name = _PILLOW.get(kind_of(data))
    return () if name is None else (name,)


def check_kind(data: bytes, name: str, allowed: Collection[str]) -> None:
    """Refuse a file of a kind that the service does not take; empty ones are left to reading.

    Raises:
        Refused: It is of such a kind, or not a picture at all.
    """
    kind = kind_of(data)
    if kind in allowed or not data:
        return
    taken = ", ".join(one.upper() for one in KINDS if one in allowed)
    if not kind:
        raise Refused(400, f"{name}: not a {taken} file; export the picture as PNG")
    wider = ",".join([*allowed, kind])
    raise Refused(
        415,
        f"{name}: is {kind.upper()}, and this service takes {taken}; export it as PNG, or start "
        f"the service with --formats {wider}",
    )
