"""Image files read with care.

The first bytes decide the format, whatever the suffix; only for tables, bare numbers and raw files,
which have no characteristic bytes, does the suffix count. PNG, JPEG, BMP and most TIFF are decoded
here, by Pillow. Color of more than 8 bits, which Pillow reduces to 8, is decoded by OpenCV and
compared with Pillow's 8 bits. Other kinds have modules of their own.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ..images.doubts import warn
from ..images.integers import as_int
from ..runtime.locks import ForkLock
from ..storage import objects
from ..storage.urls import as_url, name_of
from . import arrays, compact, counts, profiles, raw, tiffs
from . import radiometric as radiometry
from .guards import UPRIGHT, Array, Picture, check_pixels
from .paths import SUFFIXES, ImageFileError, check_path, is_file, is_picture, look
from .tags import PROFILE, SIGNATURES, read_tags

DEFAULT_MAX_PIXELS = 2**28
"""most pixels of an image file, checked before it is decoded"""
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_WIDTH_TAG, _HEIGHT_TAG = 256, 257
_ORIENTATION_TAG, _BITS_TAG, _PHOTOMETRIC_TAG = 274, 258, 262
_HEAD = 64
_TRANSPOSED = (5, 6, 7, 8)
_WHITE_IS_ZERO = 0
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_PILLOWS = (_PNG_SIGNATURE, _JPEG_SIGNATURE, b"BM")
_BARE = (".raw", ".y16", ".bin", ".gray16", ".dat")
"""suffixes of files of bare numbers"""


def read_image(
    path: str | os.PathLike[str],
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    radiometric: bool = False,
    raw_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Read an image file as [H, W] (gray) or [H, W, 3] (RGB), upright by EXIF.

    The dtype is uint8 or uint16; TIFF, arrays (.npy, .npz, .mat), OpenEXR and tables (.csv) may
    also give int32, uint32, int64, float32 or float64, whose range ``images.ranges`` finds. Colors
    are sRGB, by the profile of the file. The extra ``[files]`` reads what Pillow and OpenCV do not.

    Alpha is dropped, with a warning if it is not fully opaque. Of several pictures in a file,
    the first is read, with a warning. Palettes become RGB, or gray if they hold only gray;
    CMYK becomes RGB; 1-bit images become 0 and 255.

    Args:
        path: The file, or the URL of an object (extra ``[storage]``); its content decides the
            format, not its suffix.
        max_pixels: Refuse larger images (H * W) before decoding them.
        radiometric: Read what a thermal camera measured rather than the picture in its JPEG:
            float32 Celsius for FLIR, uint16 counts for DJI. Other files are read as usual.
        raw_size: (width, height) of a file of raw 16-bit numbers (Y16), low byte first. Files of
            known formats are read as usual.

    Raises:
        ImageFileError: The file is not a whole, readable image.
        TypeError: An argument has the wrong type.
        ValueError: ``max_pixels`` or a size is below 1.
    """
    return read_picture(
        path, max_pixels=max_pixels, radiometric=radiometric, raw_size=raw_size
    ).values


def read_picture(
    path: str | os.PathLike[str],
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    radiometric: bool = False,
    raw_size: tuple[int, int] | None = None,
) -> Picture:
    """Read an image file as :func:`read_image` does, with what it says about its values."""
    url, path = as_url(path), check_path(path)
    _check_raw_size(raw_size)
    if as_int(max_pixels) is None:
        raise TypeError(f"max_pixels: got {max_pixels!r}, expected an int of at least 1")
    if max_pixels < 1:
        raise ValueError(f"max_pixels: got {max_pixels}, expected at least 1")
    if url is not None:
        return _read_object(url, max_pixels, radiometric, raw_size)
    with _open(path) as file:
        return _read(file, path, max_pixels, radiometric, raw_size)


def _read_object(url: str, *how: Any) -> Picture:
    """Read the object of a URL; errors name the URL as it was given."""
    data, name = objects.read(url), name_of(url)
    if not data:
        raise ImageFileError(f"{url}: the object is empty; copy or export it again")
    try:
        return _read(io.BytesIO(data), Path(name), *how)
    except ImageFileError as error:
        raise ImageFileError(str(error).replace(name, url, 1)) from error


def read_image_bytes(data: bytes, name: str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """Read the bytes of an image file, which errors call ``name``: :func:`read_image`."""
    if not data:
        raise ImageFileError(f"{name}: the file is empty; send it again")
    return _read(io.BytesIO(data), Path(name), max_pixels).values


def _read(
    file: BinaryIO,
    path: Path,
    max_pixels: int,
    radiometric: bool = False,
    raw_size: tuple[int, int] | None = None,
) -> Picture:
    with pillow_limit_lifted():
        try:
            return _decode(file, path, max_pixels, radiometric, raw_size)
        except (ImageFileError, MemoryError):
            raise
        except UnidentifiedImageError as error:
            raise ImageFileError(f"{path}: {_unknown(path)}") from error
        except Exception as error:  # decoders fail on damaged files in every possible way
            raise ImageFileError(
                f"{path}: cannot be decoded ({error}); the file is damaged or cut short, or of a "
                "rare kind: copy it again or export it as PNG"
            ) from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Read (height, width), upright by EXIF, from a file's header; None if that fails.

    If Pillow does not know the format, a TIFF's tags are read, and other files as a whole.
    """
    try:
        if url := as_url(path):
            return _size_by_pillow(io.BytesIO(objects.read(url)))
        # a pipe would keep its reader waiting
        if not is_file(path):
            return None
        return _size_by_pillow(path)
    except UnidentifiedImageError:
        with contextlib.suppress(Exception):
            return _size_of_rare(Path(path))
    except Exception:  # decoders fail on damaged files in every possible way
        return None
    return None


def _size_by_pillow(path: str | os.PathLike[str] | BinaryIO) -> tuple[int, int]:
    with pillow_limit_lifted(), Image.open(path) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # versions of Pillow turn these at different times
            width, height = image.tag_v2[_WIDTH_TAG], image.tag_v2[_HEIGHT_TAG]
        turned = image.getexif().get(_ORIENTATION_TAG, 1) in _TRANSPOSED
    return (width, height) if turned else (height, width)


def _size_of_rare(path: Path) -> tuple[int, int] | None:
    with path.open("rb") as file:
        if file.read(4).startswith(SIGNATURES):
            tags = read_tags(file, path)
            size = tags.one(_HEIGHT_TAG, 0), tags.one(_WIDTH_TAG, 0)
            return size[::-1] if tags.one(_ORIENTATION_TAG, 1) in _TRANSPOSED else size
    if path.suffix.lower() in SUFFIXES or not is_picture(path):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        height, width = read_image(path).shape[:2]
    return height, width


def _open(path: Path) -> BinaryIO:
    try:
        if (found := look(path)) is None:
            raise ImageFileError(f"{path}: no such file; check the name")
        if stat.S_ISDIR(found.st_mode):
            raise ImageFileError(f"{path}: is a folder, expected an image file")
        if not stat.S_ISREG(found.st_mode):
            raise ImageFileError(f"{path}: not a regular file; save the image to one")
        if found.st_size == 0:
            raise ImageFileError(f"{path}: the file is empty; copy or export it again")
        return path.open("rb")
    except OSError as error:
        raise ImageFileError(
            f"{path}: cannot be opened ({error.strerror}); check its name and its permissions"
        ) from error


_limit_lock = ForkLock()
_limit_users = 0
_limit_saved: int | None = None


@contextlib.contextmanager
def pillow_limit_lifted() -> Iterator[None]:
    """Lift Pillow's own pixel limit, which max_pixels replaces, until the last reader is done.

    The limit is a global variable of Pillow; readers are counted, so that it is restored in
    whatever order threads end.
    """
    global _limit_users, _limit_saved
    with _limit_lock:
        if _limit_users == 0:
            _limit_saved, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _limit_users += 1
    try:
        yield
    finally:
        with _limit_lock:
            _limit_users -= 1
            if _limit_users == 0:
                Image.MAX_IMAGE_PIXELS = _limit_saved


def _check_raw_size(size: Any) -> None:
    if size is None:
        return
    if not isinstance(size, (tuple, list)) or [type(n) for n in size] != [int, int]:
        raise TypeError(f"raw_size: got {size!r}, expected (width, height)")
    if min(size) < 1:
        raise ValueError(f"raw_size: got {size!r}, expected a width and a height of at least 1")


def _unknown(path: Path) -> str:
    if path.suffix.lower() in _BARE:
        return (
            "raw numbers have no size; give it as raw_size=(width, height) (command line: "
            "--raw-size WxH)"
        )
    return "not a PNG, JPEG, TIFF or BMP image that can be read; export it as PNG"


def _decode(
    file: BinaryIO,
    path: Path,
    max_pixels: int,
    radiometric: bool,
    raw_size: tuple[int, int] | None,
) -> Picture:
    head = file.read(_HEAD)
    file.seek(0)
    if path.suffix.lower() in raw.SUFFIXES:  # TIFF-like ones begin with a small copy
        return Picture(raw.decode(file, path, max_pixels))
    if head.startswith(SIGNATURES):
        return _decode_tiff(file, path, max_pixels)
    if kind := compact.kind_of(head):
        values = compact.decode(file, path, kind, max_pixels)
        if values is None:
            values = _decode_by_pillow(file, path, max_pixels, (kind,))
        return Picture(values)
    if radiometric and head.startswith(_JPEG_SIGNATURE):
        measured = radiometry.decode(file, path, max_pixels)
        if measured is not None:
            return _with_holes(measured)._replace(is_measured=True)
    if array := _array_reader(head):
        return _with_holes(array(file, path, max_pixels))
    if head.startswith(_PILLOWS):
        return Picture(_decode_by_pillow(file, path, max_pixels))
    if path.suffix.lower() in counts.TABLES:
        return _with_holes(counts.decode_table(file, path, max_pixels))
    if raw_size is not None:
        return Picture(counts.decode_raw(file, path, raw_size, max_pixels))
    return Picture(_decode_by_pillow(file, path, max_pixels))


def _with_holes(values: Array) -> Picture:
    """Return a picture in which NaN means missing data."""
    holes = values.dtype.kind == "f" and bool(np.isnan(values).any())
    return Picture(values, float("nan") if holes else None)


def _array_reader(head: bytes) -> Callable[[BinaryIO, Path, int], Array] | None:
    """Return the reader of an array file, by its first bytes; None for pictures."""
    if head.startswith(arrays.NPY):
        return arrays.decode_npy
    if head.startswith(arrays.ZIP):
        return arrays.decode_npz
    if head.startswith((arrays.MAT, arrays.MAT_HDF)):
        return arrays.decode_mat
    return arrays.decode_exr if head.startswith(arrays.EXR) else None


def _decode_tiff(file: BinaryIO, path: Path, max_pixels: int) -> Picture:
    tags = read_tags(file, path)
    if raw.is_raw(tags):
        return Picture(raw.decode(file, path, max_pixels))
    if tags.pictures > 1 and tags.is_small_copy:
        raise ImageFileError(
            f"{path}: its first picture is a small copy of another; export the large one alone"
        )
    if tags.pictures > 1:
        warn(f"{path}: holds {tags.pictures} pictures; the first is used")
    values = None
    if tiffs.is_for_pillow(tags):
        # tifffile may know what Pillow does not
        with contextlib.suppress(UnidentifiedImageError, _LayoutError):
            values = tiffs.as_stored(_decode_by_pillow(file, path, max_pixels), path, tags)
    if values is None:
        values = tiffs.decode(file, path, tags, max_pixels)
        if profile := tags.data(PROFILE):
            values = profiles.from_profile(values, profile, path)
    nodata = tiffs.nodata(tags)
    if nodata is not None and values.dtype.kind == "f" and np.isnan(values).any():
        values = np.where(values == nodata, np.nan, values).astype(values.dtype, copy=False)
        nodata = None  # both mean missing data, and only one value can be reported
    return _with_holes(values) if nodata is None else Picture(values, nodata)


def _decode_by_pillow(
    file: BinaryIO, path: Path, max_pixels: int, formats: tuple[str, ...] = _FORMATS
) -> np.ndarray:
    image = Image.open(file, formats=formats)
    check_pixels(path, *image.size, max_pixels)
    is_tiff = isinstance(image, TiffImageFile)
    if (frames := getattr(image, "n_frames", 1)) > 1 and not is_tiff:
        warn(f"{path}: holds {frames} pictures; the first is used")
    raw_mode = str(image.tile[0].args) if image.tile else ""
    deep = _is_deep_color(image, raw_mode)
    inverted = _tiff_tag(image, _PHOTOMETRIC_TAG) == _WHITE_IS_ZERO
    image.load()
    # Pillow turns TIFFs upright as it loads them, and so does OpenCV; the tag is gone by now
    orientation = _orientation(image, path)
    if orientation != 1:
        ImageOps.exif_transpose(image, in_place=True)
    if _is_transparent(image):
        warn(f"{path}: has transparent parts; alpha is dropped")
    if deep:
        rgb = _decode_deep(file, np.asarray(image.convert("RGB")), orientation, path)
        return _in_srgb(
            np.ascontiguousarray(rgb[..., 0] if "LA;16" in raw_mode else rgb), image, file, path
        )
    if image.mode == "CMYK" and (profile := image.info.get("icc_profile")):
        return _to_array(profiles.from_cmyk(image, profile, path))
    array = _to_array(image)
    # Pillow inverts 8-bit TIFFs whose zero is white, but not 16-bit ones
    inverted = inverted and array.dtype == np.uint16
    return _in_srgb(65535 - array if inverted else array, image, file, path)


def _in_srgb(array: np.ndarray, image: Image.Image, file: BinaryIO, path: Path) -> np.ndarray:
    """Convert the pixels that were read to sRGB, if the image's profile or gamma calls for it."""
    if profile := image.info.get("icc_profile"):
        return profiles.from_profile(array, profile, path)
    if image.format == "PNG" and array.ndim == 3 and (coded := profiles.png_colors(file)):
        profiles.tell_of_colors(path, *coded)
        return array
    is_deep_png = image.format == "PNG" and array.dtype == np.uint16
    if is_deep_png and "gamma" in image.info and "srgb" not in image.info:
        return profiles.from_gamma(array, image.info["gamma"], path)
    return array


class _LayoutError(ImageFileError):
    """Deep color that OpenCV reads differently from Pillow."""


def _orientation(image: Image.Image, path: Path) -> int:
    """Return the orientation by EXIF; if that is damaged, the picture counts as upright."""
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged blocks fail in every possible way
        warn(
            f"{path.name}: its EXIF is damaged and left out, so the picture is taken to be "
            "upright; save it again without EXIF if it is not",
            "metadata",
        )
        return 1


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    return image.tag_v2.get(tag) if isinstance(image, TiffImageFile) else None


def _is_deep_color(image: Image.Image, raw_mode: str) -> bool:
    if image.mode.startswith(("I", "F")):
        return False
    if isinstance(image, TiffImageFile):
        return max(_tiff_tag(image, _BITS_TAG) or (1,)) > 8
    return ";16" in raw_mode


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data or image.mode.startswith("I"):
        return False
    return bool(np.asarray(image.convert("RGBA").getchannel("A")).min() < 255)


def _decode_deep(file: BinaryIO, coarse: np.ndarray, orientation: int, path: Path) -> np.ndarray:
    """Decode all 16 bits of a color image; `coarse` is Pillow's upright 8-bit RGB of it."""
    file.seek(0)
    data = file.read()
    if data.startswith(_PNG_SIGNATURE):
        _check_png_chunks(data, path)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is not None and pixels.ndim == 3 and pixels.dtype == np.uint16:
        rgb = UPRIGHT.get(orientation, np.asarray)(pixels[..., 2::-1])
        # OpenCV silently misreads some layouts of TIFF and fills up truncated files
        if rgb.shape == coarse.shape and np.array_equal(rgb >> 8, coarse):
            return rgb
    raise _LayoutError(
        f"{path}: 16-bit color in a layout that cannot be read safely (planar, CMYK or "
        "premultiplied); export it as 16-bit RGB PNG"
    )


def _check_png_chunks(data: bytes, path: Path) -> None:
    """Refuse chunks longer than the file: OpenCV allocates what they claim, up to 4 GiB."""
    start = len(_PNG_SIGNATURE)
    while start < len(data):
        kind = data[start + 4 : start + 8]
        start += 12 + int.from_bytes(data[start : start + 4], "big")
        if kind == b"IEND":  # decoders stop here, whatever follows
            return
    raise ImageFileError(f"{path}: the file is damaged or cut short; copy it again")


def _to_array(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "I":
        array = np.asarray(image)
        deep = array.min() >= 0 and array.max() <= 65535
        return array.astype(np.uint16 if deep else np.int32)
    if image.mode == "F":
        return np.array(image, dtype=np.float32)
    if image.mode in ("1", "L", "LA", "La"):
        return np.array(image.convert("L"))
    array = np.array(image.convert("RGB"))
    is_palette = image.mode in ("P", "PA")
    is_gray = is_palette and (array == array[..., :1]).all()
    return np.ascontiguousarray(array[..., 0]) if is_gray else array
