"""The pictures of a pair of files, of any depth, as 8 or 16 bits that use their range.

What ``images.ranges`` says of a source's values is done here for files and videos: a window becomes
all of 16 bits, 8 bits beside 16 become 16, and what has no data is filled in and remembered.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..images.ranges import Ignored, by_source, chosen, ignored, nearest_valid
from .reading import DEFAULT_MAX_PIXELS, read_image

Array = np.ndarray[Any, np.dtype[Any]]


class Levels(NamedTuple):
    """What the values of files mean: as in a call of ``Fuser``."""

    value_range: Any = None
    """for both, or by source; values outside of (low, high) are clipped"""
    nodata: Any = None

    def to_dict(self) -> dict[str, Any]:
        """What was given, for a record of settings; empty where nothing was."""
        given = {"value_range": self.value_range, "nodata": self.nodata}
        return {name: value for name, value in given.items() if value is not None}


class Sources(NamedTuple):
    """A pair of one depth."""

    ir: Array
    """uint8 or uint16, [H, W] or [H, W, 3], likewise ``vis`` and both of one dtype"""
    vis: Array
    holes: tuple[Array | None, Array | None] = (None, None)
    """of ``ir`` and ``vis``: bool [H, W], where there is no data; or how much, from 0 to 1"""

    def mended(self, fused: Array) -> Array:
        """A result, cropped at most, that shows the other source where one has no data."""
        height, width = fused.shape[:2]
        for hole, other in zip(self.holes, (self.vis, self.ir), strict=True):
            if hole is None:
                continue
            where, shown = hole[:height, :width], other[:height, :width]
            if shown.ndim == 2 and fused.ndim == 3:
                shown = np.repeat(shown[..., None], fused.shape[2], 2)
            if shown.ndim == 3 and fused.ndim == 2:
                shown = np.rint(shown @ np.array([0.299, 0.587, 0.114])).astype(shown.dtype)
            where = where[..., None] if fused.ndim == 3 else where
            if where.dtype == bool:
                fused = np.where(where, shown, fused)
            else:
                mixed = fused + where * (shown.astype(np.float32) - fused)
                fused = np.rint(mixed).astype(fused.dtype)
        return fused


def read_sources(
    ir: str | Path, vis: str | Path, levels: Levels, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Sources:
    """Read two files; sizes may differ.

    Raises:
        ValueError: As ``read_image`` and :func:`ddfm_fast.images.ranges.chosen` raise it.
    """
    a, b = (read_image(path, max_pixels=max_pixels) for path in (ir, vis))
    return sources(a, b, levels)


def sources(ir: Array, vis: Array, levels: Levels | None = None) -> Sources:
    """Bring two pictures of any real dtype to 8 bits, or both to 16."""
    levels = Levels() if levels is None else levels
    ranges, nodata = by_source(levels.value_range), by_source(levels.nodata, "nodata")
    found = [
        as_levels(image, ranges[name], name, ignored(nodata[name]))
        for name, image in (("ir", ir), ("vis", vis))
    ]
    pictures = same_depth(*(picture for picture, _ in found))
    return Sources(*pictures, holes=(found[0][1], found[1][1]))


def resized_sources(found: Sources, resize: str | None) -> Sources:
    """Bring one picture to the size of the other; None: as they are.

    Args:
        found: The pair.
        resize: The one of "ir" and "vis" whose size both get.

    Raises:
        ValueError: Another ``resize``.
    """
    if resize not in (None, "ir", "vis"):
        raise ValueError(f'resize is {resize!r}; expected "ir" or "vis", whose size both get')
    if resize is None or found.ir.shape[:2] == found.vis.shape[:2]:
        return found
    kept = 0 if resize == "ir" else 1
    size = (found.ir, found.vis)[kept].shape[:2]
    pictures, holes = [found.ir, found.vis], list(found.holes)
    pictures[1 - kept] = resized(pictures[1 - kept], size)
    hole = holes[1 - kept]
    if hole is not None:
        holes[1 - kept] = resized(hole.astype(np.float32), size) > 0
    return Sources(pictures[0], pictures[1], (holes[0], holes[1]))


def resized(image: Array, size: tuple[int, ...]) -> Array:
    """Resize a picture to (height, width): by areas to a smaller one, else by cubics."""
    how = cv2.INTER_AREA if image.shape[0] > size[0] else cv2.INTER_CUBIC
    return cv2.resize(image, (size[1], size[0]), interpolation=how)


def as_levels(
    image: Array, setting: Any, name: str, nodata: Ignored | None = None
) -> tuple[Array, Array | None]:
    """Turn a picture into uint8 or uint16, and say where it has no data.

    Args:
        image: [H, W] or [H, W, C] of a real dtype.
        setting: Its range, see ``images.ranges``; values outside are clipped.
        name: For sentences and errors.
        nodata: What means nothing.

    Raises:
        ValueError: NaN or infinity, nothing but ``nodata``, or another setting.
    """
    hole = None
    if nodata is not None and (where := nodata.where(image)).any():
        hole = where.any(-1) if image.ndim == 3 else where
        if hole.all():
            raise ValueError(
                f"{name}: all of it is nodata={nodata.value:g}, expected a picture; check the file"
            )
        image = image.reshape(hole.size, -1)[nearest_valid(hole)].reshape(image.shape)
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ValueError(
            f"{name}: {int((~np.isfinite(image)).sum())} values are NaN or infinite; --nodata nan "
            "leaves NaN out"
        )
    is_range = setting is not None and not isinstance(setting, str)
    limits = tuple(setting) if is_range else chosen(image, setting, name, nodata)
    if limits is None and image.dtype.kind == "f":
        limits = 0.0, 1.0
    return (image if limits is None else to_16_bits(image, *limits)), hole


def to_16_bits(image: Array, low: float, high: float) -> Array:
    """Map low to 0 and high to 65535, and clip."""
    scaled = (image.astype(np.float64) - low) * (65535 / (high - low))
    return np.rint(scaled.clip(0, 65535)).astype(np.uint16)


def same_depth(ir: Array, vis: Array) -> tuple[Array, Array]:
    """Make both images uint16 when one is: 8 bits become 16 exactly (257 · 255 = 65535)."""
    return (ir, vis) if ir.dtype == vis.dtype else (_deep(ir), _deep(vis))


def _deep(image: Array) -> Array:
    return image if image.dtype == np.uint16 else image.astype(np.uint16) * 257
