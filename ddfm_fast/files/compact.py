"""The formats of phones and the web: WebP, AVIF, HEIC and JPEG XL, with all of their bits.

Pillow reads WebP, and the 8 bits of AVIF; the extra ``[files]`` reads HEIC (pillow-heif), JPEG XL
(imagecodecs, and pillow-jxl-plugin for the color profile), and 10 and 12 bits.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, features

from ..images.doubts import warn
from .guards import UPRIGHT, Array, check_pixels, colors, damaged, library
from .paths import ImageFileError
from .profiles import from_profile, tell_of_colors

_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")
_JXL, _JXL_BOX = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
_HEADER = 1 << 16
"""bytes at a file's start in which its property boxes are looked for"""
_ORIENTATION = 274
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""width to height; a JPEG XL may store one of these in place of its width"""


def kind_of(head: bytes) -> str:
    """Name the format by a file's first bytes: WEBP, AVIF, HEIF, JXL, or nothing."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((_JXL, _JXL_BOX)):
        return "JXL"
    if head[4:8] == b"ftyp":
        size = min(int.from_bytes(head[:4], "big"), len(head))
        brands = [head[8:12], *(head[n : n + 4] for n in range(16, size - 3, 4))]
        if any(brand in _AVIF for brand in brands):
            return "AVIF"
        if any(brand in _HEIF for brand in brands):
            return "HEIF"
    return ""


def decode(file: BinaryIO, path: Path, kind: str, max_pixels: int) -> Array | None:
    """Decode a file of one of these formats, upright and in sRGB; None leaves it to Pillow.

    Raises:
        ImageFileError: A library that it needs is missing, or it is larger than the limit.
    """
    if kind == "HEIF":
        return _decode_heif(file, path, max_pixels)
    if kind == "JXL":
        return _decode_jxl(file.read(), path, max_pixels)
    name = kind.lower()
    if name not in features.modules and name not in features.features:
        raise ImageFileError(f"{path}: {kind} needs Pillow 11.3 or newer; export it as PNG")
    if not features.check(name):
        raise ImageFileError(f"{path}: this Pillow was built without {kind}; export it as PNG")
    return None if kind == "WEBP" else _decode_deep_avif(file, path, max_pixels)


def _decode_deep_avif(file: BinaryIO, path: Path, max_pixels: int) -> Array | None:
    data = file.read(_HEADER)
    file.seek(0)
    start = data.find(b"colrnclx")
    found = struct.unpack_from(">HH", data, start + 8) if 0 <= start < len(data) - 12 else (1, 13)
    tell_of_colors(path, *found)
    start = data.find(b"av1C")
    flags = data[start + 6] if 0 <= start < len(data) - 6 else 0
    if not flags & 0x40:
        return None
    bits = 12 if flags & 0x20 else 10
    image = Image.open(file, formats=["AVIF"])
    check_pixels(path, image.width, image.height, max_pixels)
    codecs = library("imagecodecs", path, f"AVIF of {bits} bits", "PNG")
    file.seek(0)
    stored = codecs.avif_decode(file.read(), index=0)
    if stored.shape[:2] not in (image.size[::-1], image.size):
        raise damaged(path, f"{stored.shape} values, expected {image.size}")
    values = _of_16_bits(colors(stored, (1 << bits) - 1, path), bits)
    values = UPRIGHT.get(image.getexif().get(_ORIENTATION, 1), np.asarray)(values)
    profile = image.info.get("icc_profile")
    values = from_profile(values, profile, path) if profile else values
    return np.ascontiguousarray(values)


def _decode_heif(file: BinaryIO, path: Path, max_pixels: int) -> Array:
    heif = library("pillow_heif", path, "HEIC", "JPEG or PNG")
    image = heif.open_heif(file, convert_hdr_to_8bit=False, hdr_to_16bit=False)
    width, height = image.size
    check_pixels(path, width, height, max_pixels)
    if len(image) > 1:
        warn(f"{path}: holds {len(image)} pictures; the main one is used")
    bits = int(image.info.get("bit_depth") or 8)
    profile, coded = image.info.get("icc_profile"), image.info.get("nclx_profile") or {}
    if not profile:
        tell_of_colors(
            path, coded.get("color_primaries", 1), coded.get("transfer_characteristics", 13)
        )
    values = colors(np.asarray(image), (1 << bits) - 1, path)
    if bits > 8:
        values = _of_16_bits(values, bits)
    values = from_profile(values, profile, path) if profile else values
    return np.ascontiguousarray(values)


def _decode_jxl(data: bytes, path: Path, max_pixels: int) -> Array:
    width, height = jxl_size(data, path)
    check_pixels(path, width, height, max_pixels)
    codecs = library("imagecodecs", path, "JPEG XL", "PNG")
    library("pillow_jxl", path, "JPEG XL", "PNG")  # Pillow's reader, which knows the profile
    stored = codecs.jpegxl_decode(data, index=0)
    white = np.iinfo(stored.dtype).max if stored.dtype.kind == "u" else 1
    values = colors(stored, white, path)
    profile = Image.open(io.BytesIO(data), formats=["JXL"]).info.get("icc_profile")
    values = from_profile(values, profile, path) if profile else values
    return values.astype(np.float32) if values.dtype == np.float16 else values


def jxl_size(data: bytes, path: Path) -> tuple[int, int]:
    """Read (width, height) from the header of a JPEG XL, before all of it is decoded.

    Raises:
        ImageFileError: There is no such header.
    """
    if not data.startswith(_JXL):
        start = min((n for n in map(data[:_HEADER].find, (b"jxlc", b"jxlp")) if n > 0), default=-1)
        if start < 0:
            raise damaged(path, "none of its boxes holds a picture")
        data = data[start + (8 if data[start : start + 4] == b"jxlp" else 4) :]
    if not data.startswith(_JXL) or len(data) < 12:
        raise damaged(path, "it has no JPEG XL header")
    bits = _Bits(int.from_bytes(data[2:12], "little"))
    if bits.take(1):
        height = 8 * (bits.take(5) + 1)
        ratio = bits.take(3)
        width = 8 * (bits.take(5) + 1) if ratio == 0 else _by_ratio(height, ratio)
        return width, height
    height = bits.take((9, 13, 18, 30)[bits.take(2)]) + 1
    ratio = bits.take(3)
    if ratio:
        return _by_ratio(height, ratio), height
    return bits.take((9, 13, 18, 30)[bits.take(2)]) + 1, height


def _by_ratio(height: int, ratio: int) -> int:
    across, down = _RATIOS[ratio - 1]
    return height * across // down


class _Bits:
    """Reads numbers of a few bits each, lowest bit first."""

    def __init__(self, value: int):
        self.value = value

    def take(self, count: int) -> int:
        found = self.value & ((1 << count) - 1)
        self.value >>= count
        return found


def _of_16_bits(values: Array, bits: int) -> Array:
    """Scale levels of fewer bits to 16 bits."""
    return np.rint(values * (65535 / ((1 << bits) - 1))).astype(np.uint16)
