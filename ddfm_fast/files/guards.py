"""What every reader of files checks: sizes within the limit, and libraries of the extra."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..images.doubts import warn
from .paths import ImageFileError

Array = np.ndarray[Any, np.dtype[Any]]
UPRIGHT: dict[int, Callable[[Array], Array]] = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""function that turns stored pixels upright, by the orientation tag"""


class Picture(NamedTuple):
    """What a file holds."""

    values: Array
    """[H, W] or [H, W, 3] (RGB) of a real dtype"""
    nodata: float | None = None
    """the value of missing data by the file itself; it may be NaN"""
    is_measured: bool = False
    """whether these are a thermal camera's measurements, in place of its picture"""


def check_pixels(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Refuse an image larger than the limit, or without pixels, before it is decoded."""
    if width < 1 or height < 1:
        raise ImageFileError(
            f"{path}: says it is {width}x{height} pixels, expected at least one; copy or export it "
            "again"
        )
    if width * height > max_pixels:
        raise ImageFileError(
            f"{path}: {width}x{height} is {width * height} pixels, more than the limit of "
            f"{max_pixels}; if you trust the file, raise the limit with max_pixels= "
            "(command line: --max-pixels)"
        )


def library(module: str, path: Path, kind: str, instead: str) -> Any:
    """Import a library of the extra.

    Raises:
        ImageFileError: It is not installed, or cannot be loaded; the message names the extra, and
            the format to export instead.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImageFileError(
            f"{path}: {kind} needs {module.partition('.')[0]} ({error}); "
            f"pip install 'ddfm_fast[files]', or export it as {instead}"
        ) from error


def damaged(path: Path, what: str) -> ImageFileError:
    """Return the error of a file that contradicts itself."""
    return ImageFileError(f"{path}: {what}; the file is damaged or cut short, copy it again")


def plain_integers(values: Array) -> Array:
    """Convert integers to uint8, int16 or, if they fit, uint16; else int32, uint32 or int64."""
    if values.dtype in (np.uint8, np.int16) or values.dtype.kind not in "iu":
        return values
    least, most = int(values.min()), int(values.max())
    for dtype in (np.uint16, np.int32, np.uint32, np.int64):
        info = np.iinfo(dtype)
        if info.min <= least and most <= info.max:
            return values.astype(dtype)
    raise ValueError(f"integers up to {most}, expected signed ones of at most 64 bits")


def colors(values: Array, white: float, path: Path) -> Array:
    """Turn [H, W] or [H, W, 1 to 4] into [H, W] or [H, W, 3]; warn of an alpha that is dropped.

    Raises:
        ImageFileError: The shape is none of these.
    """
    count = 1 if values.ndim == 2 else values.shape[-1]
    if values.ndim not in (2, 3) or not 1 <= count <= 4:
        raise ImageFileError(
            f"{path}: holds numbers of shape {values.shape}, expected [H, W], or [H, W, 3] for "
            "RGB; export one picture"
        )
    if count in (2, 4) and bool((values[..., -1] != white).any()):
        warn(f"{path}: has transparent parts; alpha is dropped")
    if values.ndim == 2:
        return values
    return values[..., 0] if count < 3 else values[..., :3]
