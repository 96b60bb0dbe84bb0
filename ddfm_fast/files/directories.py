"""Directories of tags, of which TIFF files are made, and EXIF blocks, which are small TIFF files.

They are read in any byte order, from classic TIFF and BigTIFF, and written little-endian and
classic. A value is kept as its bytes, so that it keeps its type when it is written again.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Collection, Iterable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, FLOAT, DOUBLE = 1, 2, 3, 4, 5, 7, 11, 12
STRIP_OFFSETS, STRIP_COUNTS = 273, 279
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIZES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8,
    18: 8,
}  # fmt: skip
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q",
          17: "q"}  # fmt: skip
_FRACTIONS = {5: "I", 10: "i"}
_MOST_ENTRIES = 4096
_MOST_BYTES = 1 << 26
"""most bytes of a value: a larger one is damaged"""


class Tag(NamedTuple):
    """The value of a tag."""

    type: int
    """TIFF's number of the type"""
    data: bytes
    """little-endian"""

    @property
    def length(self) -> int:
        return len(self.data) // _SIZES[self.type]

    @property
    def text(self) -> str:
        """The value as text, without the zeros at its end."""
        return self.data.rstrip(b"\0").decode("utf-8", "replace")

    @property
    def numbers(self) -> list[float]:
        """The value as numbers; a fraction with denominator 0 is 0."""
        if self.type in _FRACTIONS:
            both = struct.unpack(f"<{2 * self.length}{_FRACTIONS[self.type]}", self.data)
            return [a / b if b else 0.0 for a, b in zip(both[::2], both[1::2], strict=True)]
        if self.type not in _CODES:
            raise ValueError(f"a tag of type {self.type} has no numbers")
        return list(struct.unpack(f"<{self.length}{_CODES[self.type]}", self.data))


Directory = dict[int, Tag]
"""values by the number of their tag"""


def numbers(type: int, values: Iterable[float]) -> Tag:
    """Make a tag of integers, floats or, of type RATIONAL, fractions by 10,000."""
    if type == RATIONAL:
        return Tag(type, b"".join(struct.pack("<II", round(v * 10000), 10000) for v in values))
    values = list(values)
    return Tag(type, struct.pack(f"<{len(values)}{_CODES[type]}", *values))


def text(value: str) -> Tag:
    """Make a tag of text in UTF-8, which most programs use beyond ASCII."""
    return Tag(ASCII, value.encode() + b"\0")


class Reader:
    """The directories of a file, or of a block of bytes as a file.

    Raises:
        ValueError: It does not begin like one.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self.damaged = 0
        """values that could not be read and are left out"""
        file.seek(0)
        magic = file.read(4)
        if magic not in MAGIC:
            raise ValueError("is not a TIFF structure")
        self._order = "<" if magic[:1] == b"I" else ">"
        self._big = b"+" in magic
        if self._big:
            self._at(4, 4)
        (self.first,) = self._unpack("Q" if self._big else "I", 8 if self._big else 4)

    def directories(self) -> Iterator[Directory]:
        """Yield page after page, each complete; ValueError if one is damaged."""
        seen, offset = set[int](), self.first
        while offset and offset not in seen:
            seen.add(offset)
            found, offset = self.directory(offset)
            yield found

    def directory(
        self, offset: int, wanted: Collection[int] | None = None
    ) -> tuple[Directory, int]:
        """Read a directory, and the offset of the next.

        Args:
            offset: Where it begins.
            wanted: The tags to read; None for all.

        Raises:
            ValueError: There is none, or it is too long to be one.
        """
        big = self._big
        (count,) = self._unpack("Q" if big else "H", offset)
        if count > _MOST_ENTRIES:
            raise ValueError(f"a directory of {count} tags")
        start, size = offset + (8 if big else 2), 20 if big else 12
        entries = self._at(start, count * size)
        found: Directory = {}
        for n in range(count):
            entry = entries[n * size : (n + 1) * size]
            tag, type = struct.unpack(f"{self._order}HH", entry[:4])
            if wanted is None or tag in wanted:
                try:
                    found[tag] = self._tag(type, entry[4:])
                except ValueError:
                    self.damaged += 1
        try:
            (following,) = self._unpack("Q" if big else "I", start + count * size)
        except ValueError:  # some cameras cut EXIF blocks short there
            following = 0
        return found, following

    def at(self, offset: int, size: int) -> bytes:
        """Read bytes; ValueError if there are fewer."""
        return self._at(offset, size)

    def _tag(self, type: int, rest: bytes) -> Tag:
        order, wide = self._order, "Q" if self._big else "I"
        (count,) = struct.unpack(order + wide, rest[: len(rest) // 2])
        value = rest[len(rest) // 2 :]
        if type not in _SIZES:
            raise ValueError(f"type {type}")
        size = count * _SIZES[type]
        if size > _MOST_BYTES:
            raise ValueError(f"a value of {size} bytes")
        if size > len(value):
            value = self._at(struct.unpack(order + wide, value)[0], size)
        data = value[:size]
        step = _SIZES[type] // (2 if type in _FRACTIONS else 1)
        if order == ">" and step > 1:
            data = np.frombuffer(data, f">u{step}").astype(f"<u{step}").tobytes()
        return Tag(type, data)

    def _unpack(self, code: str, offset: int) -> tuple[int, ...]:
        return struct.unpack(self._order + code, self._at(offset, struct.calcsize("<" + code)))

    def _at(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError("it is cut short")
        return data


@dataclasses.dataclass
class Page:
    """A directory to write, with what it points to."""

    tags: Directory
    strips: list[bytes] = dataclasses.field(default_factory=list)
    """of the pixels, if it has any"""
    inner: dict[int, Directory] = dataclasses.field(default_factory=dict)
    """directories by the tag that points to them"""


def pages_of(file: BinaryIO) -> list[Page]:
    """Read a whole TIFF file that consists of strips."""
    reader = Reader(file)
    found = []
    for tags in reader.directories():
        spans = zip(tags[STRIP_OFFSETS].numbers, tags[STRIP_COUNTS].numbers, strict=True)
        found.append(Page(tags, [reader.at(int(at), int(size)) for at, size in spans]))
    return found


def pack(pages: Iterable[Page]) -> bytes:
    """Write pages one after the other.

    Raises:
        ValueError: They take more than the 4 GiB that a classic TIFF file can hold.
    """
    out = bytearray(b"II*\0\0\0\0\0")
    link = 4
    try:
        for page in pages:
            tags = dict(page.tags)
            if page.strips:
                tags[STRIP_OFFSETS] = numbers(LONG, [_append(out, s) for s in page.strips])
                tags[STRIP_COUNTS] = numbers(LONG, [len(strip) for strip in page.strips])
            for pointer, inner in page.inner.items():
                tags[pointer] = numbers(LONG, [_append_directory(out, inner)])
            start = _append_directory(out, tags)
            struct.pack_into("<I", out, link, start)
            link = len(out) - 4
    except struct.error:
        raise ValueError("more than the 4 GiB that a TIFF file holds") from None
    return bytes(out)


def _append(out: bytearray, data: bytes) -> int:
    if len(out) % 2:
        out += b"\0"
    start = len(out)
    out += data
    return start


def _append_directory(out: bytearray, tags: Directory) -> int:
    entries = b""
    for number, tag in sorted(tags.items()):
        value = tag.data
        if len(value) > 4:
            value = struct.pack("<I", _append(out, value))
        entries += struct.pack("<HHI", number, tag.type, tag.length) + value.ljust(4, b"\0")
    return _append(out, struct.pack("<H", len(tags)) + entries + bytes(4))
