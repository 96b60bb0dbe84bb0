"""The first directory of a TIFF, read with distrust: the tags that say how its pixels are stored.

Decoders trust a file. Here every count and offset is first checked against the file's length, so
that no decoder is asked for more than there is.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .guards import damaged

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS, STRIP_COUNTS, PLANAR = 273, 274, 277, 278, 279, 284
PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 317, 322, 323, 324, 325
EXTRA, FORMAT, NODATA, DNG, PROFILE = 338, 339, 42113, 50706, 34675
_SUBFILE = 254
_REDUCED, _MASK = 1, 4
_WANTED = frozenset(
    (WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS,
     STRIP_COUNTS, PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, EXTRA,
     FORMAT, NODATA, DNG, PROFILE, _SUBFILE)
)  # fmt: skip
"""tags that are read; others may be damaged"""
_TYPES = {
    1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "u8", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "u8",
    11: "f4", 12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip
"""NumPy's type for each of TIFF's; fractions as 8 raw bytes"""
_MOST_TAGS, _MOST_PICTURES = 4096, 1 << 16


class Tags(NamedTuple):
    """The tags of the first picture of a TIFF."""

    order: str
    """byte order: "<" or ">" """
    values: dict[int, np.ndarray[Any, np.dtype[Any]]]
    pictures: int
    """number of pictures in the file, without smaller copies and masks"""
    length: int
    """of the file, in bytes"""

    @property
    def is_small_copy(self) -> bool:
        """Whether the first picture says that it is a smaller copy of another one."""
        return bool(self.one(_SUBFILE, 0) & _REDUCED)

    def one(self, tag: int, default: int) -> int:
        """Return the first value of a tag of integers."""
        found = self.values.get(tag)
        return int(found[0]) if found is not None and found.size else default

    def all(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return all values of a tag of integers."""
        found = self.values.get(tag)
        return tuple(found.tolist()) if found is not None and found.size else default

    def data(self, tag: int) -> bytes:
        """Return the bytes of a tag; empty if there is none."""
        found = self.values.get(tag)
        return b"" if found is None else found.tobytes()

    def text(self, tag: int) -> str:
        """Return the text of a tag; empty if there is none."""
        return self.data(tag).split(b"\0")[0].decode("latin-1").strip()


def read_tags(file: BinaryIO, path: Path) -> Tags:
    """Read the tags of the first picture, and count the pictures; leaves the file at its start.

    Raises:
        ImageFileError: A directory lies outside of the file or leads in a circle.
    """
    length = file.seek(0, os.SEEK_END)
    head = _take(file, path, 0, 16 if length >= 16 else 8)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    if big and head[4:8] != struct.pack(order + "HH", 8, 0):
        raise damaged(path, "its BigTIFF offsets do not have 8 bytes")
    place = struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0]
    first, place = _directory(file, path, place, order, big, _WANTED)
    seen, pictures = {place}, 1
    while place and len(seen) < _MOST_PICTURES:
        tags, following = _directory(file, path, place, order, big, frozenset((_SUBFILE,)))
        kind = int(tags[_SUBFILE][0]) if _SUBFILE in tags and tags[_SUBFILE].size else 0
        pictures += not kind & (_REDUCED | _MASK)
        if following in seen:
            raise damaged(path, "its list of pictures is a loop")
        seen.add(following)
        place = following
    file.seek(0)
    return Tags(order, first, pictures, length)


def _directory(
    file: BinaryIO, path: Path, place: int, order: str, big: bool, wanted: frozenset[int]
) -> tuple[dict[int, np.ndarray[Any, np.dtype[Any]]], int]:
    """Return the `wanted` tags of a directory, and where the next directory is."""
    wide, count_type, size = ("Q", "Q", 20) if big else ("I", "H", 12)
    head = struct.calcsize(order + count_type)
    count = struct.unpack(order + count_type, _take(file, path, place, head))[0]
    if count > _MOST_TAGS:
        raise damaged(path, f"one of its directories claims {count} tags")
    after = struct.calcsize(order + wide)
    block = _take(file, path, place + head, count * size + after)
    values: dict[int, np.ndarray[Any, np.dtype[Any]]] = {}
    for start in range(0, count * size, size):
        tag, kind = struct.unpack_from(order + "HH", block, start)
        if kind not in _TYPES or tag not in wanted:
            continue
        number = struct.unpack_from(order + wide, block, start + 4)[0]
        dtype = np.dtype(order + _TYPES[kind])
        inline = block[start + size - after : start + size]
        if number * dtype.itemsize <= after:
            data = inline[: number * dtype.itemsize]
        else:
            data = _take(
                file, path, struct.unpack(order + wide, inline)[0], number * dtype.itemsize
            )
        values.setdefault(tag, np.frombuffer(data, dtype))
    return values, struct.unpack_from(order + wide, block, count * size)[0]


def _take(file: BinaryIO, path: Path, start: int, size: int) -> bytes:
    length = file.seek(0, os.SEEK_END)
    if start + size > length:
        raise damaged(path, f"it should have {size} bytes at byte {start}, and has {length} in all")
    file.seek(start)
    return file.read(size)
