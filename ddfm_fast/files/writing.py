"""Image files written atomically, in the format that the suffix names."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import cv2
import numpy as np
from PIL import Image
from typing_extensions import Unpack

from ..images.integers import as_count, as_int
from ..storage import objects
from ..storage.urls import as_url
from .directories import SHORT, numbers, pack, pages_of
from .embedding import Facts, bind, embed, nodata_tag
from .metadata import Metadata
from .paths import DEEP_SUFFIXES, SUFFIXES, ImageFileError, atomic_write_bytes, check_path

JPEG_SUFFIXES = (".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")
CHROMAS = ("444", "422", "420")
"""resolution of color in JPEG: as luma, half across, or half both ways"""
COMPRESSIONS = {"none": 1, "lzw": 5, "deflate": 8, "zstd": 50000}
"""compressions of TIFF, with its numbers for them"""
_COMPRESSION_TAG = 259
_PAGE_TYPES = {
    "bool": "uint8", "int8": "int16", "uint32": "float64", "int64": "float64", "uint64": "float64",
    "float16": "float32",
}  # fmt: skip
"""dtypes that TIFF writers lack → one that holds their values, for further pages"""

Array = np.ndarray[Any, np.dtype[Any]]


class SidePage(NamedTuple):
    """A further page of a TIFF file."""

    values: Array
    """[H, W] or [H, W, 3] of any real dtype"""
    nodata: float | None = None
    """the value of missing data"""


class WritingOptions(TypedDict, total=False):
    """How a picture is written; see :func:`write_image`."""

    quality: int
    chroma: str | None
    compression: str | int | None
    metadata: Metadata | None
    value_range: tuple[float, float] | None
    pages: Mapping[str, SidePage] | None


def write_image(path: str | os.PathLike[str], array: Array, **how: Unpack[WritingOptions]) -> Path:
    """Write [H, W], [H, W, 1] or RGB [H, W, 3] atomically, in the format that the suffix names.

    Args:
        path: The file to write; its folder is made if it is missing.
        array: uint8 for any of ``SUFFIXES``, uint16 for one of ``DEEP_SUFFIXES``, or float32 for
            TIFF.
        **how: ``quality``: JPEG quality, 1 to 100 (95).
            ``chroma``: Resolution of color in JPEG, one of ``CHROMAS``; None is "444" from quality
            90 on.
            ``compression``: For TIFF one of ``COMPRESSIONS`` (None: LZW; none for floats), for PNG
            0 to 9.
            ``metadata``: What the file says besides its pixels, and the program's name; BMP holds
            none.
            ``value_range``: The values of black and white, if the file is to state them.
            ``pages``: Further pages of a TIFF file by name; the first is "fused".

    Returns:
        The path.

    Raises:
        ImageFileError: The file or folder cannot be written, or its suffix does not fit.
        ValueError: The array has another shape, or an option is out of range or for another format.
        TypeError: The container or dtype is another one, or an option does not exist.
    """
    url, path = as_url(path), check_path(path)
    data = encode_image(array, path, **how)
    if url is None:
        return atomic_write_bytes(path, data)
    objects.put(url, data)
    return path


def encode_image(
    array: Array,
    path: Path,
    *,
    quality: int = 95,
    chroma: str | None = None,
    compression: str | int | None = None,
    metadata: Metadata | None = None,
    value_range: tuple[float, float] | None = None,
    pages: Mapping[str, SidePage] | None = None,
) -> bytes:
    """Encode an image as :func:`write_image` would write it to ``path``; errors are the same."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageFileError(
            f"{path}: suffix {path.suffix!r} is not one of {', '.join(SUFFIXES)}; choose one"
        )
    options = _options(suffix, quality, chroma, compression)
    array = _check_array(array)
    _check_depth(array, suffix, path)
    if pages and suffix not in TIFF_SUFFIXES:
        raise ImageFileError(
            f"{path}: {suffix} holds one picture, not {len(pages) + 1}; write .tif"
        )
    try:
        data = _encode(array, suffix, options, compression, path)
        facts = _facts(array, metadata, value_range)
        if not pages:
            return embed(data, suffix, facts)
        parts = [("fused", data, facts)]
        for name, page in pages.items():
            values = _as_page(page.values)
            encoded = _encode(values, suffix, options, compression, path)
            said = None if page.nodata is None else nodata_tag(page.nodata)
            parts.append((name, encoded, replace(_facts(values, None, None), nodata=said)))
        return bind(parts)
    except ImageFileError:
        raise
    except ValueError as error:  # only our own code raises it: the file would be too long
        raise ImageFileError(f"{path}: cannot be written as {suffix} ({error})") from error


def check_options(
    quality: Any = 95, chroma: Any = None, compression: Any = None, *, suffix: str | None = None
) -> None:
    """Raise ValueError for an option that no format takes, or not the suffix's."""
    if as_count(quality, 1, 100) is None:
        raise ValueError(f"quality: got {quality!r}, expected an int from 1 to 100")
    if chroma is not None and chroma not in CHROMAS:
        raise ValueError(
            f"chroma: got {chroma!r}, expected one of {', '.join(CHROMAS)}, or None for 444 from "
            "quality 90 on"
        )
    if compression is None:
        return
    of_tiff = isinstance(compression, str) and compression in COMPRESSIONS
    of_png = as_count(compression, 0, 9) is not None
    tiff, png = ", ".join(COMPRESSIONS), "0 to 9"
    if not (of_tiff or of_png):
        raise ValueError(
            f"compression: got {compression!r}, expected one of {tiff} for .tif, or {png} for .png"
        )
    if suffix in TIFF_SUFFIXES and not of_tiff:
        raise ValueError(f"compression: got {compression}, expected one of {tiff} for {suffix}")
    if suffix == ".png" and not of_png:
        raise ValueError(f"compression: got {compression!r}, expected {png} for {suffix}")


def _check_array(array: Array) -> Array:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"array: got {type(array).__name__}, expected a NumPy array")
    if array.dtype.name not in ("uint8", "uint16", "float32"):
        raise TypeError(
            f"array: got dtype {array.dtype}, expected uint8, uint16 or, for .tif, float32; for "
            "floats in 0..1: (array * 255 + 0.5).astype('uint8')"
        )
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))) or 0 in array.shape:
        raise ValueError(f"array: got shape {array.shape}, expected [H, W] or [H, W, 3], not empty")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_depth(array: Array, suffix: str, path: Path) -> None:
    if array.dtype == np.uint16 and suffix not in DEEP_SUFFIXES:
        raise ImageFileError(
            f"{path}: {suffix} holds 8 bits and the image is uint16; write .png or .tif, or "
            "convert it: (array // 257).astype('uint8')"
        )
    if array.dtype == np.float32 and suffix not in TIFF_SUFFIXES:
        raise ImageFileError(
            f"{path}: {suffix} holds integers and the image is float32; write .tif, or convert it"
        )


def _as_page(page: Array) -> Array:
    """Return a page in a dtype that TIFF writers take, with every value unchanged."""
    return np.ascontiguousarray(page.astype(_PAGE_TYPES.get(page.dtype.name, page.dtype.name)))


def _facts(
    array: Array, metadata: Metadata | None, value_range: tuple[float, float] | None
) -> Facts:
    height, width = array.shape[:2]
    gray = array.ndim == 2 or array.shape[2] == 1
    return Facts(height, width, gray, array.dtype.name, metadata, value_range)


def _options(
    suffix: str, quality: int, chroma: str | None, compression: str | int | None
) -> list[int]:
    """Return OpenCV's options for the format."""
    check_options(quality, chroma, compression, suffix=suffix)
    if suffix in JPEG_SUFFIXES:
        chroma = chroma or ("444" if quality >= 90 else None)
        found = [cv2.IMWRITE_JPEG_QUALITY, int(quality)]
        if chroma is not None:
            factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{chroma}")
            found += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
        return found
    if suffix == ".png" and (level := as_int(compression)) is not None:
        return [cv2.IMWRITE_PNG_COMPRESSION, level]
    if suffix in TIFF_SUFFIXES and isinstance(compression, str):
        by_opencv = "none" if compression == "zstd" else compression
        return [cv2.IMWRITE_TIFF_COMPRESSION, COMPRESSIONS[by_opencv]]
    return []


def _encode(
    array: Array, suffix: str, options: list[int], compression: str | int | None, path: Path
) -> bytes:
    bgr = np.ascontiguousarray(array[..., ::-1] if array.ndim == 3 else array)
    try:
        done, data = cv2.imencode(suffix, bgr, options)
    except cv2.error as error:
        raise ImageFileError(f"{path}: cannot be encoded ({error.err})") from error
    if not done:
        height, width = array.shape[:2]
        raise ImageFileError(f"{path}: {width}x{height} cannot be encoded as {suffix}; write .png")
    found = data.tobytes()
    return _by_zstd(found) if compression == "zstd" and suffix in TIFF_SUFFIXES else found


def _by_zstd(data: bytes) -> bytes:
    """Compress the strips of an uncompressed TIFF, which OpenCV's libtiff often cannot."""
    (page,) = pages_of(io.BytesIO(data))
    page.strips = [_zstd(strip) for strip in page.strips]
    page.tags[_COMPRESSION_TAG] = numbers(SHORT, [COMPRESSIONS["zstd"]])
    return pack([page])


def _zstd(strip: bytes) -> bytes:
    """Compress bytes by Pillow's libtiff, as the only strip of a picture of one row."""
    file = io.BytesIO()
    try:
        Image.frombytes("L", (len(strip), 1), strip).save(file, "TIFF", compression="zstd")
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            "compression: got 'zstd', which the libtiff of this Pillow lacks; expected none, lzw "
            "or deflate, or install a newer Pillow"
        ) from error
    (page,) = pages_of(file)
    (found,) = page.strips
    return found
