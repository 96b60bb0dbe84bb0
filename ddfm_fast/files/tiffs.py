"""TIFF files that Pillow cannot read, or reads with loss.

Pillow keeps the kinds that it reads exactly: 8 bits, unsigned 16 bits, and some signed and float
kinds. But it takes int8 for uint8 and uint32 for int32, and swaps the bytes of compressed
big-endian numbers twice. These and all other kinds are read by tifffile and imagecodecs, after
:mod:`.tags` has checked every size against the file's.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..images.doubts import warn
from . import tags as t
from .guards import UPRIGHT, Array, check_pixels, damaged, library, plain_integers
from .paths import ImageFileError
from .tags import Tags

_NONE, _ZSTD = 1, 50000
_PACKED = {5: 4096, 8: 1100, 32946: 1100, 32773: 128, 34925: 1 << 16, _ZSTD: 1 << 16}
"""highest ratio of each compression that is decoded: LZW, deflate, PackBits, LZMA, Zstandard"""
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_ALPHAS = (1, 2)
_PREMULTIPLIED = 1
_INSTEAD = "an uncompressed TIFF of 16-bit integers or 32-bit floats"


def kind_of(tags: Tags) -> str:
    """Return what the numbers of a TIFF are, for messages."""
    number = {_SIGNED: "signed", _FLOAT: "float"}.get(tags.one(t.FORMAT, _UNSIGNED), "unsigned")
    packed = tags.one(t.COMPRESSION, _NONE)
    more = "" if packed == _NONE else f", compression {packed}"
    if tags.one(t.PLANAR, 1) == 2:
        more += ", planar"
    return f"a TIFF of {number} {tags.one(t.BITS, 1)} bits{more}"


def is_for_pillow(tags: Tags) -> bool:
    """Return whether Pillow, with OpenCV for deep color, reads the first picture exactly."""
    bits, formats = set(tags.all(t.BITS, (1,))), set(tags.all(t.FORMAT, (_UNSIGNED,)))
    packed, order = tags.one(t.COMPRESSION, _NONE), tags.order
    if len(bits) > 1 or len(formats) > 1:
        return False
    depth, number, gray = bits.pop(), formats.pop(), tags.one(t.SAMPLES, 1) == 1
    if number in (_UNSIGNED, _UNDEFINED):
        if depth in (1, 2, 4, 8):
            return True
        if depth == 16 and not gray:
            return tags.one(t.PLANAR, 1) == 1 and packed != _ZSTD
        return (depth == 16 and gray) or (depth == 12 and packed == _NONE and order == "<")
    exact = (number, depth) in ((_SIGNED, 16), (_SIGNED, 32), (_FLOAT, 32))
    return exact and gray and (packed == _NONE or order == "<")


def as_stored(values: Array, path: Path, tags: Tags) -> Array:
    """Return what Pillow read, with signed 16 bits as stored; warn of bands left out."""
    samples, kind = tags.one(t.SAMPLES, 1), tags.one(t.EXTRA, 0)
    wanted = 3 if values.ndim == 3 else 1
    if tags.all(t.EXTRA) and samples > wanted and kind not in _ALPHAS:
        warn(f"{path}: has {samples} bands; the first {wanted} are used")
    signed = tags.one(t.FORMAT, _UNSIGNED) == _SIGNED and tags.one(t.BITS, 1) == 16
    return values.astype(np.int16) if signed and values.dtype == np.int32 else values


def nodata(tags: Tags) -> float | None:
    """Return the missing value that GDAL's tag gives; None if there is none, or not a number."""
    try:
        return float(tags.text(t.NODATA))
    except ValueError:
        return None


def decode(file: BinaryIO, path: Path, tags: Tags, max_pixels: int) -> Array:
    """Decode the first picture with tifffile, upright.

    Raises:
        ImageFileError: The extra is missing, or this kind of picture is not supported.
    """
    width, height = tags.one(t.WIDTH, 0), tags.one(t.HEIGHT, 0)
    check_pixels(path, width, height, max_pixels)
    _check_kind(path, tags)
    _check_layout(path, tags, width, height)
    tifffile = library("tifffile", path, kind_of(tags), _INSTEAD)
    if tags.one(t.COMPRESSION, _NONE) != _NONE or tags.one(t.BITS, 1) % 8:
        library("imagecodecs", path, kind_of(tags), _INSTEAD)
    file.seek(0)
    with tifffile.TiffFile(file, name=path.name) as tiff:
        page = tiff.pages[0]
        stored = page.asarray(squeeze=False, maxworkers=1)
    values = np.moveaxis(stored[:, 0, ..., 0], 0, -1) if stored.shape[0] > 1 else stored[0, 0]
    if values.shape != (height, width, tags.one(t.SAMPLES, 1)):
        raise damaged(path, f"{values.shape} values, expected {width}x{height} pixels")
    values = _numbers(_colors(path, tags, values), tags)
    return np.ascontiguousarray(UPRIGHT.get(tags.one(t.ORIENTATION, 1), np.asarray)(values))


def _check_kind(path: Path, tags: Tags) -> None:
    samples, photometric = tags.one(t.SAMPLES, 1), tags.one(t.PHOTOMETRIC, _BLACK_IS_ZERO)
    extra, packed = len(tags.all(t.EXTRA)), tags.one(t.COMPRESSION, _NONE)
    number, depth = tags.one(t.FORMAT, _UNSIGNED), tags.one(t.BITS, 1)
    wanted = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3}.get(photometric)
    if wanted is None:
        raise ImageFileError(
            f"{path}: {kind_of(tags)} with photometric interpretation {photometric}, expected gray "
            "or RGB; export it as RGB"
        )
    if samples - wanted not in (0, 1) or (samples > wanted and not extra):
        raise ImageFileError(
            f"{path}: {samples} bands, expected 1 or 3; export the band, or the three bands, that "
            "you want (gdal_translate -b 1 in.tif out.tif)"
        )
    if packed != _NONE and packed not in _PACKED:
        raise ImageFileError(
            f"{path}: {kind_of(tags)}, which cannot be read safely; export it with deflate or "
            "without compression"
        )
    if len({*tags.all(t.BITS, (1,))}) > 1 or len({*tags.all(t.FORMAT, (1,))}) > 1:
        raise ImageFileError(f"{path}: its bands differ in depth; export them with one depth")
    floats = number == _FLOAT and depth in (16, 32, 64)
    if not floats and not (number in (_UNSIGNED, _SIGNED, _UNDEFINED) and 1 <= depth <= 64):
        raise ImageFileError(f"{path}: {kind_of(tags)}, number format {number}; export as float32")
    if photometric == _WHITE_IS_ZERO and number not in (_UNSIGNED, _UNDEFINED):
        raise ImageFileError(
            f"{path}: {kind_of(tags)} in which white is zero; export it with black as zero"
        )


def _check_layout(path: Path, tags: Tags, width: int, height: int) -> None:
    """Check the strips or tiles against the file: how many, where, and how large once decoded."""
    samples, planar = tags.one(t.SAMPLES, 1), tags.one(t.PLANAR, 1) == 2
    tiled = t.TILE_WIDTH in tags.values
    if tiled:
        part = tags.one(t.TILE_WIDTH, 0), tags.one(t.TILE_HEIGHT, 0)
        offsets, counts = tags.values.get(t.TILE_OFFSETS), tags.values.get(t.TILE_COUNTS)
    else:
        part = width, min(height, tags.one(t.ROWS, height))
        offsets, counts = tags.values.get(t.STRIP_OFFSETS), tags.values.get(t.STRIP_COUNTS)
    if offsets is None or counts is None or min(part) < 1:
        raise damaged(path, "it does not say where its pixels are")
    if tiled and part[0] * part[1] > 4 * width * height + (1 << 22):
        raise damaged(path, f"tiles of {part[0]}x{part[1]} in a picture of {width}x{height}")
    number = math.ceil(width / part[0]) * math.ceil(height / part[1]) * (samples if planar else 1)
    if len(offsets) < number or len(counts) < number:
        raise damaged(path, f"only {min(len(offsets), len(counts))} of {number} parts are listed")
    ends = offsets[:number].astype(np.float64) + counts[:number]
    if ends.max() > tags.length or counts[:number].min() < 0 or offsets[:number].min() < 0:
        raise damaged(path, f"pixels end at byte {ends.max():.0f}, of {tags.length} in the file")
    if not counts[:number].all() and nodata(tags) is None:
        raise damaged(path, "some parts have no pixels, and there is no value to fill them with")
    size = part[0] * part[1] * (1 if planar else samples) * tags.one(t.BITS, 1) / 8
    most = counts[:number].max() * float(_PACKED.get(tags.one(t.COMPRESSION, _NONE), 1))
    if size > max(most, 1 << 22):
        raise damaged(path, f"a part claims {size:.0f} bytes and has {int(counts[:number].max())}")


def _colors(path: Path, tags: Tags, values: Array) -> Array:
    """Turn [H, W, samples] into [H, W] or [H, W, 3]."""
    photometric = tags.one(t.PHOTOMETRIC, _BLACK_IS_ZERO)
    wanted = 3 if photometric == _RGB else 1
    if values.shape[-1] > wanted:
        kind = tags.one(t.EXTRA, 0)
        alpha = values[..., -1]
        solid = (1 << tags.one(t.BITS, 1)) - 1 if alpha.dtype.kind in "iu" else 1
        if kind == _PREMULTIPLIED and (alpha != solid).any():
            raise ImageFileError(
                f"{path}: colors are premultiplied by alpha; export it without transparency"
            )
        if kind not in _ALPHAS:
            warn(f"{path}: has {values.shape[-1]} bands; the first {wanted} are used")
        elif (alpha != solid).any():
            warn(f"{path}: has transparent parts; alpha is dropped")
    if photometric == _WHITE_IS_ZERO:
        values = np.array(((1 << tags.one(t.BITS, 1)) - 1) - values.astype(np.uint64))
    return values[..., 0] if wanted == 1 else values[..., :3]


def _numbers(values: Array, tags: Tags) -> Array:
    """Convert to dtypes that the package knows, and keep every value."""
    if values.dtype == np.float16:
        return values.astype(np.float32)
    if values.dtype.kind == "f":
        return values
    depth, signed = tags.one(t.BITS, 1), tags.one(t.FORMAT, _UNSIGNED) == _SIGNED
    if depth <= 8 and not signed:
        white: Any = (1 << depth) - 1
        return np.rint(values.astype(np.float64) * (255 / white)).astype(np.uint8)
    return plain_integers(values)
