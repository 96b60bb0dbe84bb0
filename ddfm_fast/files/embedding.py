"""Put what a result says besides its pixels into an encoded file, without touching the pixels.

PNG gets chunks, JPEG segments, TIFF tags; BMP can hold none of it.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib

import numpy as np

from .. import __version__
from ..images.doubts import warn
from . import metadata as meta
from .directories import (
    BYTE,
    FLOAT,
    LONG,
    RATIONAL,
    SHORT,
    UNDEFINED,
    Directory,
    Page,
    Tag,
    numbers,
    pack,
    pages_of,
    text,
)  # fmt: skip
from .metadata import Metadata
from .srgb import profile

SOFTWARE = f"ddfm_fast {__version__}"
_SOFTWARE_TAG = 305
_LEAST, _MOST = 340, 341
_SUBFILE, _PAGE_NAME, _PAGE_NUMBER = 254, 285, 297
_PAGE_OF_MANY = 2
_EXIF_SIZE = 40962, 40963
_SAMPLES = {"uint8": BYTE, "uint16": SHORT, "int16": 8, "int32": 9, "float32": FLOAT}
_SEGMENT = 65533
"""most bytes of a JPEG segment"""
_XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What to put into a file."""

    height: int
    width: int
    gray: bool
    dtype: str
    metadata: Metadata | None = None
    """None writes no metadata, not even the program's name"""
    value_range: tuple[float, float] | None = None
    """values of black and white"""
    nodata: Tag | None = None
    """GDAL's, in place of the source's"""

    @property
    def profile(self) -> bytes:
        """The ICC profile, if a source had one."""
        wanted = self.metadata is not None and self.metadata.has_profile
        return profile(gray=self.gray) if wanted else b""

    @property
    def range_text(self) -> str:
        """The range in words, or nothing."""
        if self.value_range is None:
            return ""
        low, high = self.value_range
        return f"black {low:g}, white {high:g}"

    def directory(self) -> Directory:
        """Return the first directory of EXIF or, in a TIFF, its tags besides those of pixels."""
        found: Directory = {}
        if self.metadata is not None:
            found |= self.metadata.image | {_SOFTWARE_TAG: text(SOFTWARE)}
            if self.metadata.image or self.metadata.exif:
                found[meta.ORIENTATION] = numbers(SHORT, [1])
            if self.metadata.dpi is not None:
                for tag, value in zip(meta.RESOLUTIONS, self.metadata.dpi, strict=True):
                    found[tag] = numbers(RATIONAL, [value])
                found[meta.RESOLUTION_UNIT] = numbers(SHORT, [2])
        return found

    def inner(self) -> dict[int, Directory]:
        """Return the directories of EXIF and GPS."""
        if self.metadata is None:
            return {}
        exif = dict(self.metadata.exif)
        for tag, size in zip(_EXIF_SIZE, (self.width, self.height), strict=True):
            if tag in exif:
                exif[tag] = numbers(LONG, [size])
        both = {meta.EXIF: exif, meta.GPS: self.metadata.gps}
        return {pointer: tags for pointer, tags in both.items() if tags}

    @property
    def has_exif(self) -> bool:
        """Whether a source had EXIF."""
        return self.metadata is not None and bool(self.metadata.image or self.inner())

    def block(self, most: int | None = None) -> bytes:
        """Make an EXIF block of at most so many bytes; empty if it cannot be that short."""
        inner = self.inner()
        found = pack([Page(self.directory(), inner=inner)])
        if most is not None and len(found) > most and meta.EXIF in inner:
            inner[meta.EXIF] = {
                tag: value for tag, value in inner[meta.EXIF].items() if tag != meta.MAKER_NOTE
            }
            found = pack([Page(self.directory(), inner=inner)])
        if most is not None and len(found) > most:
            _left_out("EXIF", most)
            return b""
        return found


def _left_out(what: str, most: int) -> None:
    warn(
        f"{what} is longer than the {most} bytes that JPEG holds and is left out; write .png or "
        ".tif",
        f"long {what}",
    )


def embed(data: bytes, suffix: str, facts: Facts) -> bytes:
    """Put facts into an encoded PNG, JPEG or TIFF of one page; another kind stays as it is."""
    if suffix == ".png":
        return _into_png(data, facts)
    if suffix in (".jpg", ".jpeg"):
        return _into_jpeg(data, facts)
    if suffix in (".tif", ".tiff") and (facts.metadata is not None or facts.value_range):
        (page,) = pages_of(io.BytesIO(data))
        return pack([_with_facts(page, facts)])
    return data


def bind(pages: list[tuple[str, bytes, Facts]]) -> bytes:
    """Join TIFF files of one page each, with their names, into one file."""
    found = []
    for n, (name, data, facts) in enumerate(pages):
        (page,) = pages_of(io.BytesIO(data))
        page = _with_facts(page, facts)
        page.tags[_SUBFILE] = numbers(LONG, [_PAGE_OF_MANY])
        page.tags[_PAGE_NAME] = text(name)
        page.tags[_PAGE_NUMBER] = numbers(SHORT, [n, len(pages)])
        found.append(page)
    return pack(found)


def _with_facts(page: Page, facts: Facts) -> Page:
    tags = page.tags | facts.directory()
    if facts.value_range is not None:
        kind = _SAMPLES.get(facts.dtype, FLOAT)
        for tag, value in zip((_LEAST, _MOST), facts.value_range, strict=True):
            whole = float(value) if kind == FLOAT else round(value)
            tags[tag] = numbers(kind, [whole] * (1 if facts.gray else 3))
    if facts.profile:
        tags[meta.PROFILE] = Tag(UNDEFINED, facts.profile)
    found = facts.metadata
    if found is not None and found.xmp:
        tags[meta.XMP] = Tag(BYTE, found.xmp)
    if found is not None and found.geo is not None:
        tags |= found.geo.tags
    nothing = facts.nodata or (None if found is None else found.nodata)
    if nothing is not None:
        tags[meta.NODATA] = nothing
    return Page(tags, page.strips, facts.inner())


def nodata_tag(value: float) -> Tag:
    """Make GDAL's tag for the value of missing data; readers parse its text as a number."""
    return text("nan" if value != value else f"{value:.17g}")


def _into_png(data: bytes, facts: Facts) -> bytes:
    chunks: list[tuple[bytes, bytes]] = []
    found = facts.metadata
    if found is not None:
        if found.has_profile:
            chunks.append((b"iCCP", b"sRGB\0\0" + zlib.compress(facts.profile, 9)))
        if found.dpi is not None:
            meters = (round(value / 0.0254) for value in found.dpi)
            chunks.append((b"pHYs", struct.pack(">IIB", *meters, 1)))
        chunks.append((b"tEXt", b"Software\0" + SOFTWARE.encode("latin-1")))
        if facts.has_exif:
            chunks.append((b"eXIf", facts.block()))
        if found.xmp:
            chunks.append((b"iTXt", meta.XMP_KEYWORD + bytes(5) + found.xmp))
    if facts.range_text:
        chunks.append((b"tEXt", b"Value range\0" + facts.range_text.encode("latin-1")))
    end = len(meta.PNG_SIGNATURE) + 12 + 13  # of IHDR
    packed = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return data[:end] + packed + data[end:]


def _into_jpeg(data: bytes, facts: Facts) -> bytes:
    segments: list[tuple[int, bytes]] = []
    found = facts.metadata
    if found is not None:
        if block := facts.block(_SEGMENT - 6):
            segments.append((0xE1, b"Exif\0\0" + block))
        if found.xmp and len(found.xmp) > _SEGMENT - len(_XMP_HEAD):
            _left_out("XMP", _SEGMENT - len(_XMP_HEAD))
        elif found.xmp:
            segments.append((0xE1, _XMP_HEAD + found.xmp))
        if found.has_profile:
            segments.append((0xE2, b"ICC_PROFILE\0\1\1" + facts.profile))
    if facts.range_text:
        segments.append((0xFE, f"Value range: {facts.range_text}".encode()))
    if data[2:4] != b"\xff\xe0":  # OpenCV writes JFIF first; without it, the segments come first
        return data[:2] + _packed(segments) + data[2:]
    end = 4 + int.from_bytes(data[4:6], "big")
    head = bytearray(data[:end])
    if found is not None and found.dpi is not None:
        # JFIF: marker, length, "JFIF\0", version, unit, density
        density = (int(np.clip(round(value), 1, 65535)) for value in found.dpi)
        struct.pack_into(">BHH", head, 13, 1, *density)
    return bytes(head) + _packed(segments) + data[end:]


def _packed(segments: list[tuple[int, bytes]]) -> bytes:
    return b"".join(
        struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body for kind, body in segments
    )
