"""What an image file says besides its pixels, read so that a result can carry it too.

This is EXIF with GPS, XMP, the resolution, whether there is a color profile, and where a GeoTIFF
lies on the earth. Pixels are read upright and in sRGB, so anything that says otherwise is corrected
here. It never fails a fusion: what cannot be read is left out, with one warning.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from ..images.doubts import warn
from ..storage import objects
from ..storage.urls import as_url
from .directories import ASCII, DOUBLE, MAGIC, SHORT, Directory, Reader, Tag, numbers
from .paths import ImageFileError
from .reading import pillow_limit_lifted

WIDTH, HEIGHT, ORIENTATION = 256, 257, 274
RESOLUTIONS, RESOLUTION_UNIT = (282, 283), 296
XMP, PROFILE, NODATA = 700, 34675, 42113
EXIF, GPS = 34665, 34853
MAKER_NOTE = 37500
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
XMP_KEYWORD = b"XML:com.adobe.xmp"
_SCALE, _TIEPOINTS, _TRANSFORMATION = 33550, 33922, 34264
_PLACED = _SCALE, _TIEPOINTS, _TRANSFORMATION
_GEO = (*_PLACED, 34735, 34736, 34737)
_KEYS = 34735
"""the tag without which the other geographic tags have no meaning"""
_DESCRIPTION = 270
_KEPT = (269, _DESCRIPTION, 271, 272, 306, 315, 316, 18246, 33432, *range(40091, 40096))
"""tags kept from a picture's first directory: author, subject and time; the rest is about pixels"""
_OF_PIXELS = re.compile(r"ImageJ=|\{\"shape\"|<\?xml|.*<OME", re.DOTALL)
"""descriptions of how the pixels are stored in the file"""
_COLOR_SPACE, _SIZE_TAGS, _INTEROPERABILITY = 40961, (40962, 40963), 40965
_INCH_IN_CM = 2.54
_METERS_IN_INCH = 0.0254
_TRANSPOSED = (5, 6, 7, 8)
_MOST_TEXT = 1 << 24
"""bytes of XMP"""
_GAIN_MAPS = (b"hdrgm:", b"GContainer", b"Container:Directory")
"""marks in XMP that refer to further pictures in the file"""


class Geo(NamedTuple):
    """Where a picture lies on the earth."""

    tags: Directory
    size: tuple[int, int]
    """height and width of the picture that the tags are for"""

    def for_size(self, height: int, width: int) -> Directory:
        """Return the tags for the same place at another size in pixels."""
        down, across = self.size[0] / height, self.size[1] / width
        if down == across == 1:
            return self.tags
        found = dict(self.tags)
        for tag, factors in (
            (_SCALE, (across, down, 1)),
            (_TIEPOINTS, (1 / across, 1 / down, 1, 1, 1, 1)),
            (_TRANSFORMATION, (across, down, 1, 1)),
        ):
            if tag in found:
                values = found[tag].numbers
                scaled = (v * factors[n % len(factors)] for n, v in enumerate(values))
                found[tag] = numbers(DOUBLE, scaled)
        return found

    def cut(self, top: int, left: int, size: tuple[int, int]) -> Geo:
        """Return the place of a part of the picture, of ``size``, that begins at (top, left)."""
        found = dict(self.tags)
        if _TIEPOINTS in found:  # I, J, K of the picture, X, Y, Z on the earth, for each point
            less = left, top, 0, 0, 0, 0
            points = found[_TIEPOINTS].numbers
            found[_TIEPOINTS] = numbers(DOUBLE, (v - less[n % 6] for n, v in enumerate(points)))
        if _TRANSFORMATION in found:  # rows of 4, of (I, J, K, 1)
            m = list(found[_TRANSFORMATION].numbers)
            for row in range(0, len(m), 4):
                m[row + 3] += m[row] * left + m[row + 1] * top
            found[_TRANSFORMATION] = numbers(DOUBLE, m)
        return Geo(found, size)


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a file says besides its pixels; empty if it says nothing."""

    image: Directory = dataclasses.field(default_factory=dict)
    """by whom, when and with what it was made: the first directory of EXIF"""
    exif: Directory = dataclasses.field(default_factory=dict)
    """how it was taken"""
    gps: Directory = dataclasses.field(default_factory=dict)
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    """across and down"""
    has_profile: bool = False
    geo: Geo | None = None
    nodata: Tag | None = None
    """GDAL's, as text"""

    def or_else(self, other: Metadata) -> Metadata:
        """Return this, completed by what another has; EXIF comes from one of them."""
        mine, yours = dataclasses.asdict(self), dataclasses.asdict(other)
        found = {name: getattr(self if mine[name] else other, name) for name in yours}
        if self.image or self.exif:
            found |= {"image": self.image, "exif": self.exif}
        return Metadata(**found)


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Read what a file, or the object of a URL, says besides its pixels; for others, nothing.

    Damaged parts are left out, with one warning.
    """
    url, path = as_url(path), Path(path)
    try:
        file: BinaryIO = path.open("rb") if url is None else io.BytesIO(objects.read(url))
    except (OSError, ImageFileError) as error:
        _warn(path, f"cannot be read ({error}) and is left out")
        return Metadata()
    with file:
        return metadata_of(file, path)


def metadata_of(file: BinaryIO, path: Path) -> Metadata:
    """Read an open file as :func:`read_metadata` does; ``path`` is what warnings call it."""
    found = _Found()
    try:
        magic = file.read(8)
        if magic[:4] in MAGIC:
            _read_tiff(file, found)
        elif magic == PNG_SIGNATURE:
            _read_png(file, found)
        else:
            _read_other(file, found)
        metadata = found.metadata()
    except UnidentifiedImageError:
        return Metadata()
    except Exception as error:  # damaged files fail in every possible way
        _warn(path, f"cannot be read ({error}) and is left out")
        return Metadata()
    if found.damaged:
        _warn(path, "is partly damaged, and that part is left out")
    if found.is_turned_map:
        _warn(path, "gives a map position (GeoTIFF) to a picture that is rotated; it is left out")
    return metadata


def _warn(path: Path, what: str) -> None:
    warn(f"{path.name}: its metadata {what}; --no-metadata drops all of it", "metadata")


class _Found:
    """Collects what is found in a file."""

    def __init__(self) -> None:
        self.image: Directory = {}
        self.exif: Directory = {}
        self.gps: Directory = {}
        self.xmp = b""
        self.dpi: tuple[float, float] | None = None
        self.has_profile = False
        self.geo: Geo | None = None
        self.nodata: Tag | None = None
        self.damaged = False
        self.is_turned_map = False
        """a place on the earth was left out, since it is for the picture before turning"""

    def add_exif(self, block: bytes) -> None:
        """Read a block of EXIF; damage is noted."""
        try:
            reader = Reader(io.BytesIO(block.removeprefix(b"Exif\0\0")))
            self.add_directory(reader)
        except ValueError:
            self.damaged = True

    def add_directory(self, reader: Reader) -> None:
        """Read the first directory and those of EXIF and GPS."""
        wanted = (*_KEPT, *RESOLUTIONS, ORIENTATION, RESOLUTION_UNIT, EXIF, GPS)
        tags, _ = reader.directory(reader.first, wanted)
        for name, pointer in (("exif", EXIF), ("gps", GPS)):
            try:
                if pointer in tags:
                    setattr(self, name, reader.directory(int(tags[pointer].numbers[0]))[0])
            except (ValueError, IndexError):
                self.damaged = True
        self.damaged |= reader.damaged > 0
        self.image = tags
        self.dpi = self.dpi or _dpi(tags)

    def metadata(self) -> Metadata:
        """Return all of it, corrected for pixels that are upright and sRGB."""
        turned = _first(self.image, ORIENTATION, 1)
        image = {tag: value for tag, value in self.image.items() if tag in _KEPT}
        if _OF_PIXELS.match(image[_DESCRIPTION].text if _DESCRIPTION in image else ""):
            del image[_DESCRIPTION]
        exif = {tag: value for tag, value in self.exif.items() if tag != _INTEROPERABILITY}
        if self.has_profile and _COLOR_SPACE in exif:
            exif[_COLOR_SPACE] = numbers(SHORT, [1])
        if turned in range(2, 9) and self.geo is not None:
            self.geo, self.is_turned_map = None, True
        return Metadata(
            image=image,
            exif=exif,
            gps=self.gps,
            xmp=_upright(self.xmp),
            dpi=self.dpi[::-1] if self.dpi and turned in _TRANSPOSED else self.dpi,
            has_profile=self.has_profile,
            geo=self.geo,
            nodata=self.nodata,
        )


def _read_tiff(file: BinaryIO, found: _Found) -> None:
    reader = Reader(file)
    found.add_directory(reader)
    tags, _ = reader.directory(reader.first, (WIDTH, HEIGHT, XMP, PROFILE, NODATA, *_GEO))
    found.damaged |= reader.damaged > 0
    found.has_profile = PROFILE in tags
    if XMP in tags:
        found.xmp = tags[XMP].data
    if NODATA in tags and tags[NODATA].type == ASCII:
        found.nodata = tags[NODATA]
    if _KEYS in tags:
        size = int(_first(tags, HEIGHT, 0)), int(_first(tags, WIDTH, 0))
        place = {tag: tags[tag] for tag in _GEO if tag in tags}
        if min(size) > 0 and all(place[tag].type == DOUBLE for tag in _PLACED if tag in place):
            found.geo = Geo(place, size)
        else:
            found.damaged = True


def _read_png(file: BinaryIO, found: _Found) -> None:
    """Read all chunks except those of pixels; some programs write theirs after the pixels."""
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return
        if kind not in (b"eXIf", b"iTXt", b"pHYs", b"iCCP", b"sRGB") or size > _MOST_TEXT:
            file.seek(size + 4, os.SEEK_CUR)
            continue
        data = file.read(size + 4)[:-4]
        if kind == b"eXIf":
            found.add_exif(data)
        elif kind == b"pHYs" and size == 9:
            x, y, unit = struct.unpack(">IIB", data)
            if unit == 1:
                found.dpi = _both_positive((x * _METERS_IN_INCH, y * _METERS_IN_INCH))
        elif kind == b"iTXt" and data.startswith(XMP_KEYWORD + b"\0"):
            found.xmp = _international_text(data)
        elif kind in (b"iCCP", b"sRGB"):
            found.has_profile = True


def _international_text(data: bytes) -> bytes:
    packed = data[len(XMP_KEYWORD) + 1 : len(XMP_KEYWORD) + 2] == b"\1"
    text = data[len(XMP_KEYWORD) + 3 :].split(b"\0", 2)[-1]
    return zlib.decompressobj().decompress(text, _MOST_TEXT) if packed else text


def _read_other(file: BinaryIO, found: _Found) -> None:
    """Read a JPEG, or any other format that Pillow knows."""
    file.seek(0)
    with pillow_limit_lifted(), Image.open(file) as image:
        info = dict(image.info)
    unit, density = info.get("jfif_unit"), info.get("jfif_density", (0, 0))
    if unit in (1, 2):
        factor = 1 if unit == 1 else _INCH_IN_CM
        found.dpi = _both_positive((density[0] * factor, density[1] * factor))
    elif "jfif" not in info and "exif" not in info:  # else Pillow reports 72 if there is none
        found.dpi = _both_positive(info.get("dpi"))
    found.has_profile = bool(info.get("icc_profile"))
    if isinstance(xmp := info.get("xmp", b""), bytes):
        found.xmp = xmp
    if info.get("exif"):
        found.add_exif(info["exif"])


def _dpi(tags: Directory) -> tuple[float, float] | None:
    unit = _first(tags, RESOLUTION_UNIT, 2)
    if unit not in (2, 3):
        return None
    x, y = (_first(tags, tag, 0) for tag in RESOLUTIONS)
    factor = 1 if unit == 2 else _INCH_IN_CM
    return _both_positive((x * factor, y * factor))


def _both_positive(dpi: tuple[float, float] | None) -> tuple[float, float] | None:
    return (float(dpi[0]), float(dpi[1])) if dpi and min(dpi) > 0 and max(dpi) < 1e5 else None


def _first(tags: Directory, tag: int, default: float) -> float:
    try:
        return tags[tag].numbers[0]
    except (KeyError, ValueError, IndexError):
        return default


def _upright(xmp: bytes) -> bytes:
    """Make XMP say that the picture is upright; drop references to other pictures in the file."""
    if any(name in xmp for name in _GAIN_MAPS):
        return b""
    return re.sub(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)[2-8]", rb"\g<1>1", xmp).rstrip(b"\0")
