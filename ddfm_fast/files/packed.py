"""Two sources in one file: a PNG of four channels, RGB and what would be alpha.

MFNet and copies of MSRS store their thermal picture so. A pair that names one file twice means
such a file.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from .paths import ImageFileError, is_file
from .radiometric import is_radiometric
from .reading import DEFAULT_MAX_PIXELS, image_size, pillow_limit_lifted, read_image

_MODE = "RGBA"


def read_pair(
    ir: str | os.PathLike[str],
    vis: str | os.PathLike[str],
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> tuple[np.ndarray, np.ndarray]:
    """Read both pictures of a pair; from one file for both, its fourth channel and its RGB.

    A thermal camera's JPEG has one picture, which serves as both; ``depth`` reads its temperatures.

    Raises:
        ImageFileError: As `read_image` raises it, or the one file has no fourth channel.
    """
    if Path(ir) == Path(vis) and not is_radiometric(ir):
        return _unpacked(Path(ir), max_pixels)
    first, second = (read_image(path, max_pixels=max_pixels) for path in (ir, vis))
    return first, second


def is_packed(path: Path) -> bool:
    """Return whether it is an image of four channels; False for what cannot be read."""
    try:
        with pillow_limit_lifted(), Image.open(path) as image:
            return is_file(path) and image.mode == _MODE
    except (OSError, ValueError, SyntaxError):
        return False


def _unpacked(path: Path, max_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = image_size(path) or (0, 0)
    if height * width > max_pixels or not is_packed(path):
        picture = read_image(path, max_pixels=max_pixels)  # raises an error that says what is wrong
        raise ImageFileError(
            f"{path}: is given for both sources and has the shape {picture.shape}; expected two "
            "files, or one of four channels: RGB and infrared"
        )
    try:
        with pillow_limit_lifted(), Image.open(path) as image:
            channels = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageFileError(
            f"{path}: cannot be decoded ({error}); the file is damaged or cut short"
        ) from error
    return channels[..., 3].copy(), channels[..., :3].copy()
