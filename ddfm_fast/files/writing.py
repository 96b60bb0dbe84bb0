"""Image files written atomically, in the format that the suffix names."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from .paths import DEEP_SUFFIXES, SUFFIXES, ImageFileError, atomic_write_bytes, check_path


def write_image(path: str | os.PathLike[str], array: np.ndarray, *, quality: int = 95) -> Path:
    """Write [H, W], [H, W, 1] or RGB [H, W, 3] atomically, in the format that the suffix names.

    Args:
        path: The file to write; its folder is made where it is missing.
        array: uint8 for any of ``SUFFIXES``, or uint16 for one of ``DEEP_SUFFIXES``.
        quality: JPEG quality, 1 to 100; from 90 on chroma is not subsampled.

    Returns:
        The path.

    Raises:
        ImageFileError: The file or folder cannot be written, or its suffix does not fit.
        ValueError: An array of another shape, or a quality out of range.
        TypeError: Another container or dtype.
    """
    path = check_path(path)
    return atomic_write_bytes(path, encode_image(array, path, quality=quality))


def encode_image(array: np.ndarray, path: Path, *, quality: int = 95) -> bytes:
    """Encode an image as :func:`write_image` would write it to ``path``; errors are the same."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageFileError(
            f"{path}: suffix {path.suffix!r} is not one of {', '.join(SUFFIXES)}; choose one"
        )
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise ValueError(f"quality: got {quality!r}, expected an int from 1 to 100")
    array = _check_array(array)
    if array.dtype == np.uint16 and suffix not in DEEP_SUFFIXES:
        raise ImageFileError(
            f"{path}: {suffix} holds 8 bits and the image is uint16; write .png or .tif, or "
            "convert it: (array // 257).astype('uint8')"
        )
    return _encode(array, suffix, quality, path)


def _check_array(array: np.ndarray) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"array: got {type(array).__name__}, expected a NumPy array")
    if array.dtype.name not in ("uint8", "uint16"):
        raise TypeError(
            f"array: got dtype {array.dtype}, expected uint8 or uint16; for floats in 0..1: "
            "(array * 255 + 0.5).astype('uint8')"
        )
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))) or 0 in array.shape:
        raise ValueError(f"array: got shape {array.shape}, expected [H, W] or [H, W, 3], not empty")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _encode(array: np.ndarray, suffix: str, quality: int, path: Path) -> bytes:
    options = []
    if suffix in (".jpg", ".jpeg"):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        if quality >= 90:
            options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    bgr = np.ascontiguousarray(array[..., ::-1] if array.ndim == 3 else array)
    try:
        done, data = cv2.imencode(suffix, bgr, options)
    except cv2.error as error:
        raise ImageFileError(f"{path}: cannot be encoded ({error.err})") from error
    if not done:
        height, width = array.shape[:2]
        raise ImageFileError(f"{path}: {width}x{height} cannot be encoded as {suffix}; write .png")
    return data.tobytes()
