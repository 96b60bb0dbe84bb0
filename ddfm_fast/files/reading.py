"""Image files read with care.

Reads PNG, JPEG, TIFF and BMP by content, whatever the suffix. Pillow identifies and decodes. Color
of more than 8 bits, which Pillow reduces to 8, is decoded by OpenCV and held against Pillow's 8
bits.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ..images.doubts import warn
from ..runtime.locks import ForkLock
from .paths import ImageFileError, check_path, is_file, look

DEFAULT_MAX_PIXELS = 2**28
"""of an image file, before it is decoded"""
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_WIDTH_TAG, _HEIGHT_TAG = 256, 257
_ORIENTATION_TAG, _BITS_TAG, _PHOTOMETRIC_TAG = 274, 258, 262
_TRANSPOSED = (5, 6, 7, 8)
_WHITE_IS_ZERO = 0
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


def read_image(path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """Read an image file as [H, W] (gray) or [H, W, 3] (RGB), upright by EXIF.

    uint8 or uint16, of a TIFF also int32 or float32, whose range ``images.ranges`` finds.

    Alpha is dropped, with a warning where it is not fully opaque. Of several pictures in a file
    the first is read, with a warning. Palettes become RGB, or gray where they hold only gray;
    CMYK becomes RGB; 1-bit images become 0 and 255.

    Args:
        path: The file; its content decides the format, not its suffix.
        max_pixels: Refuse larger images (H * W) before decoding them.

    Raises:
        ImageFileError: Anything that is not a whole, readable image.
        TypeError: A path or max_pixels of the wrong type.
        ValueError: max_pixels below 1.
    """
    path = check_path(path)
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int):
        raise TypeError(f"max_pixels: got {max_pixels!r}, expected an int of at least 1")
    if max_pixels < 1:
        raise ValueError(f"max_pixels: got {max_pixels}, expected at least 1")
    with _open(path) as file, pillow_limit_lifted():
        try:
            return _decode(file, path, max_pixels)
        except (ImageFileError, MemoryError):
            raise
        except UnidentifiedImageError as error:
            raise ImageFileError(
                f"{path}: not a PNG, JPEG, TIFF or BMP image that can be read; export it as PNG"
            ) from error
        except Exception as error:  # decoders fail on damaged files in every way there is
            raise ImageFileError(
                f"{path}: cannot be decoded ({error}); the file is damaged or cut short, or of a "
                "rare kind: copy it again or export it as PNG"
            ) from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Read (height, width), upright by EXIF, from a file's header; None where that fails."""
    try:
        # a pipe would keep its reader waiting
        if not is_file(path):
            return None
        with pillow_limit_lifted(), Image.open(path) as image:
            width, height = image.size
            if isinstance(image, TiffImageFile):  # Pillow's versions differ in when they turn these
                width, height = image.tag_v2[_WIDTH_TAG], image.tag_v2[_HEIGHT_TAG]
            turned = image.getexif().get(_ORIENTATION_TAG, 1) in _TRANSPOSED
    except Exception:  # decoders fail on damaged files in every way there is
        return None
    return (width, height) if turned else (height, width)


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

    The limit is a global of Pillow; counting readers restores it whatever order threads end in.
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


def _decode(file: BinaryIO, path: Path, max_pixels: int) -> np.ndarray:
    image = Image.open(file, formats=_FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageFileError(
            f"{path}: {width}x{height} is {width * height} pixels, more than the limit of "
            f"{max_pixels}; if the file is to be trusted, raise it with max_pixels= "
            "(command line: --max-pixels)"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        warn(f"{path}: holds {frames} pictures; the first is used")
    raw_mode = str(image.tile[0].args) if image.tile else ""
    deep = _is_deep_color(image, raw_mode)
    inverted = _tiff_tag(image, _PHOTOMETRIC_TAG) == _WHITE_IS_ZERO
    image.load()
    # Pillow turns TIFFs upright as it loads them, and so does OpenCV; the tag is gone by here.
    orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    ImageOps.exif_transpose(image, in_place=True)
    if _is_transparent(image):
        warn(f"{path}: has transparent parts; alpha is dropped")
    if deep:
        rgb = _decode_deep(file, np.asarray(image.convert("RGB")), orientation, path)
        return np.ascontiguousarray(rgb[..., 0] if "LA;16" in raw_mode else rgb)
    array = _to_array(image)
    # Pillow inverts 8-bit TIFFs whose zero is white, but not those of 16 bits.
    return 65535 - array if inverted and array.dtype == np.uint16 else array


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
        rgb = _UPRIGHT.get(orientation, np.asarray)(pixels[..., 2::-1])
        # OpenCV misreads some layouts of TIFF and fills up truncated files, both in silence.
        if rgb.shape == coarse.shape and np.array_equal(rgb >> 8, coarse):
            return rgb
    raise ImageFileError(
        f"{path}: colour of 16 bits in a layout that cannot be read safely (planar, CMYK or "
        "premultiplied); export it as 16-bit RGB PNG"
    )


def _check_png_chunks(data: bytes, path: Path) -> None:
    """Refuse chunks longer than the file: OpenCV allocates what they claim, up to 4 GiB."""
    start = len(_PNG_SIGNATURE)
    while start < len(data):
        kind = data[start + 4 : start + 8]
        start += 12 + int.from_bytes(data[start : start + 4], "big")
        if kind == b"IEND":  # what follows belongs to nobody, and decoders stop here
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
