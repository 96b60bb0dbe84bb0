"""Raw files of cameras, developed by LibRaw: the white balance of the shot, in sRGB, 16 bits."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from . import tags as t
from .guards import Array, check_pixels, library
from .tags import Tags

SUFFIXES = (".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw")
_SENSOR, _LINEAR = 32803, 34892
"""photometric codes: a sensor's mosaic, and the same demosaiced"""
_SRGB = (2.4, 12.92)
"""exponent and slope of sRGB's curve"""


def is_raw(tags: Tags) -> bool:
    """Return whether a TIFF is a raw file: it holds a sensor's mosaic, or says that it is a DNG."""
    return t.DNG in tags.values or tags.one(t.PHOTOMETRIC, 0) in (_SENSOR, _LINEAR)


def decode(file: BinaryIO, path: Path, max_pixels: int) -> Array:
    """Develop a raw file: uint16 [H, W, 3], upright, with no brightening.

    Raises:
        ImageFileError: The extra is missing, or the picture is larger than the limit.
    """
    rawpy = library("rawpy", path, "a raw file of a camera", "TIFF or JPEG")
    with rawpy.imread(file) as raw:
        check_pixels(path, raw.sizes.raw_width, raw.sizes.raw_height, max_pixels)
        values = raw.postprocess(
            output_bps=16, no_auto_bright=True, use_camera_wb=True, gamma=_SRGB,
            output_color=rawpy.ColorSpace.sRGB,
        )  # fmt: skip
    return np.ascontiguousarray(values)
