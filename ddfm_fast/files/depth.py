"""The pictures of a pair of files, of any depth, as 8 or 16 bits that use their full range.

This applies the ranges of ``images.ranges`` to files and videos: a window becomes the full range of
16 bits, 8 bits beside 16 become 16, and missing data is filled in and remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..images.doubts import warn
from ..images.ranges import Ignored, by_source, chosen, ignored, nearest_valid
from .guards import Picture
from .packed import read_pair
from .radiometric import is_radiometric
from .reading import DEFAULT_MAX_PIXELS, image_size, read_picture

Array = np.ndarray[Any, np.dtype[Any]]


class Levels(NamedTuple):
    """What the values of files mean: as in a call of ``Fuser``."""

    value_range: Any = None
    """for both sources, or by source; values outside of (low, high) are clipped"""
    nodata: Any = None
    raw_size: tuple[int, int] | None = None
    """(width, height) of files of bare numbers"""

    def to_dict(self) -> dict[str, Any]:
        """Return what was given, for a record of settings; empty if nothing was."""
        given = self._asdict()
        return {name: value for name, value in given.items() if value is not None}


class Unit(NamedTuple):
    """A source as its file has it."""

    values: Array
    """upright, in the file's dtype"""
    low: float
    """the value taken as black; ``high`` is the one taken as white"""
    high: float
    nothing: float | None = None
    """the value of missing pixels, if there is one"""


class Cut(NamedTuple):
    """The place of a part in the frame from which it was cut."""

    top: int
    left: int
    size: tuple[int, ...]
    """(height, width) of the frame"""


class Sources(NamedTuple):
    """A pair of equal depth."""

    ir: Array
    """uint8 or uint16, [H, W] or [H, W, 3], as is ``vis``; both have one dtype"""
    vis: Array
    holes: tuple[Array | None, Array | None] = (None, None)
    """of ``ir`` and ``vis``: bool [H, W], where data is missing; or its share, from 0 to 1"""
    units: tuple[Unit, ...] = ()
    """of ``ir`` and ``vis``"""
    cut: Cut | None = None
    """their place, if they are a part of a frame"""

    def cropped(self, rows: slice, columns: slice) -> Sources:
        """Return these rows and columns of everything in it."""
        part = rows, columns
        holes = tuple(None if hole is None else hole[part] for hole in self.holes)
        units = tuple(unit._replace(values=unit.values[part]) for unit in self.units)
        cut = Cut(rows.start, columns.start, self.vis.shape[:2])
        return Sources(self.ir[part], self.vis[part], (holes[0], holes[1]), units, cut)

    def mended(self, fused: Array) -> Array:
        """Return a result, maybe cropped, that shows the other source where one lacks data."""
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
    """Read two files, or one of four channels (see `packed`); sizes may differ.

    A thermal camera's JPEG gives its temperatures as infrared, if they fit, and its picture as
    visible; one such file may be both. If a file states which value means missing data, and
    ``levels`` does not, that value is used, with a warning.

    Raises:
        ValueError: As ``read_image`` and :func:`ddfm_fast.images.ranges.chosen` raise it.
    """
    if Path(ir) == Path(vis) and not is_radiometric(ir):
        return sources(*read_pair(ir, vis, max_pixels), levels)
    given = by_source(levels.nodata, "nodata")
    read = {
        name: read_picture(
            path, max_pixels=max_pixels, radiometric=name == "ir", raw_size=levels.raw_size
        )
        for name, path in (("ir", ir), ("vis", vis))
    }
    size = read["vis"].values.shape[:2]
    if read["ir"].is_measured and read["ir"].values.shape[:2] != size == image_size(ir):
        warn(
            f"ir: the temperatures in {ir} differ from vis in size, and its picture does not, so "
            "the picture is used; to use the temperatures, resize vis to their size"
        )
        read["ir"] = read_picture(ir, max_pixels=max_pixels)
    nodata = {name: nodata_of(picture, given[name], name) for name, picture in read.items()}
    return sources(read["ir"].values, read["vis"].values, levels._replace(nodata=nodata))


def nodata_of(picture: Picture, given: Any, name: str, *, told: bool = True) -> Any:
    """Return the value of missing data in a source: as given, else as the file states and has.

    Args:
        picture: The source as read.
        given: The caller's ``nodata``.
        name: The source's, for the message.
        told: Whether to warn that the file's own value is used.
    """
    if given is not None or picture.nodata is None:
        return given
    own = Ignored(picture.nodata)
    if not own.where(picture.values).any():
        return None
    if picture.values.ndim == 3 and not math.isnan(own.value):
        used, result = "it is not used, as one band of a color may have it", None
    else:
        used, result = "such pixels are left out", own
    if told:
        warn(
            f"{name}: the file says that {own.value:g} means no data: {used}; nodata= "
            "(command line: --nodata) overrides this",
            f"nodata {name}",
        )
    return result


def sources(ir: Array, vis: Array, levels: Levels | None = None) -> Sources:
    """Bring two pictures of any real dtype to 8 bits, or both to 16."""
    levels = Levels() if levels is None else levels
    ranges, nodata = by_source(levels.value_range), by_source(levels.nodata, "nodata")
    nothing = {name: ignored(value) for name, value in nodata.items()}
    found = [
        as_levels(image, ranges[name], name, nothing[name])
        for name, image in (("ir", ir), ("vis", vis))
    ]
    pictures = same_depth(*(picture for picture, _, _ in found))
    units = tuple(
        Unit(image, *limits, None if mark is None else mark.value)
        for mark, image, (_, _, limits) in zip(nothing.values(), (ir, vis), found, strict=True)
    )
    return Sources(*pictures, holes=(found[0][1], found[1][1]), units=units)


def resized_sources(found: Sources, resize: str | None) -> Sources:
    """Resize one picture to the size of the other; None leaves them as they are.

    Args:
        found: The pair.
        resize: "ir" or "vis": the source whose size both get.

    Raises:
        ValueError: ``resize`` is anything else.
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
    units = list(found.units)
    if hole is not None:
        holes[1 - kept] = resized(hole.astype(np.float32), size) > 0
    if units:
        units[1 - kept] = moved(
            units[1 - kept], lambda values: resized(values, size), hole, holes[1 - kept]
        )
    return Sources(pictures[0], pictures[1], (holes[0], holes[1]), tuple(units))


_MOVED = ("uint8", "uint16", "int16", "float32", "float64")
"""dtypes that OpenCV interpolates"""


def moved(
    unit: Unit, by: Callable[[Array], Array], hole: Array | None, empty: Array | None
) -> Unit:
    """Move the values of a source as its picture was moved.

    Args:
        unit: The source.
        by: A function that moves an array of a dtype that OpenCV interpolates.
        hole: bool [H, W], where its values are missing; they are not mixed into others.
        empty: bool, of the size after the move, where no value was measured. There the result has
            the source's own mark of missing data, else NaN or, for integers, the dtype's least.
    """
    values, dtype = unit.values, unit.values.dtype
    if hole is not None and not hole.all():
        values = values.reshape(hole.size, -1)[nearest_valid(hole)].reshape(values.shape)
    values = by(values if dtype.name in _MOVED else values.astype(np.float64))
    if values.dtype != dtype and dtype.kind in "iu":
        values = np.rint(values).clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = values.astype(dtype, copy=False)
    if empty is not None and empty.any():
        mark, values = _nothing(unit), values.copy()
        values[empty] = mark
        unit = unit._replace(nothing=mark)
    return unit._replace(values=values)


def _nothing(unit: Unit) -> float:
    """Return the mark of missing values: the source's own, else NaN or the least integer."""
    dtype = unit.values.dtype
    if dtype.kind not in "iu":
        return math.nan if unit.nothing is None else unit.nothing
    info = np.iinfo(dtype)
    known = unit.nothing
    return known if known is not None and info.min <= known <= info.max else info.min


def resized(image: Array, size: tuple[int, ...]) -> Array:
    """Resize a picture to (height, width): by areas to a smaller size, else bicubically."""
    how = cv2.INTER_AREA if image.shape[0] > size[0] else cv2.INTER_CUBIC
    return cv2.resize(image, (size[1], size[0]), interpolation=how)


def as_levels(
    image: Array, setting: Any, name: str, nodata: Ignored | None = None
) -> tuple[Array, Array | None, tuple[float, float]]:
    """Turn a picture into uint8 or uint16; also return where it lacks data, and its range.

    Args:
        image: [H, W] or [H, W, C] of a real dtype.
        setting: Its range, see ``images.ranges``; values outside are clipped.
        name: For warnings and errors.
        nodata: The value of missing data.

    Raises:
        ValueError: There is NaN or infinity, or nothing but ``nodata``; or the setting is wrong.
    """
    hole = None
    if nodata is not None and (where := nodata.where(image)).any():
        hole = where.any(-1) if image.ndim == 3 else where
        if hole.all():
            raise ValueError(
                f"{name}: every pixel is nodata={nodata.value:g}, expected a picture; check nodata"
            )
        image = image.reshape(hole.size, -1)[nearest_valid(hole)].reshape(image.shape)
    if image.dtype.kind == "f" and not (finite := np.isfinite(image)).all():
        first = image[~finite].flat[0]
        raise ValueError(
            f"{name}: {int((~finite).sum())} values are NaN or infinite, such as {first:g}; "
            "nodata=nan (command line: --nodata) leaves all of them out"
        )
    is_range = setting is not None and not isinstance(setting, str)
    limits = tuple(setting) if is_range else chosen(image, setting, name, nodata)
    if limits is None and image.dtype.kind == "f":
        limits = 0.0, 1.0
    if limits is None:
        return image, hole, (0, np.iinfo(image.dtype).max)
    return to_16_bits(image, *limits), hole, (limits[0], limits[1])


def to_16_bits(image: Array, low: float, high: float) -> Array:
    """Map low to 0 and high to 65535, and clip."""
    if image.dtype in (np.uint8, np.uint16) and image.size > np.iinfo(image.dtype).max:
        levels = np.arange(np.iinfo(image.dtype).max + 1)
        return _scaled(levels, low, high)[image]  # fewer levels than pixels
    return _scaled(image, low, high)


def _scaled(image: Array, low: float, high: float) -> Array:
    scaled = (image.astype(np.float64) - low) * (65535 / (high - low))
    return np.rint(scaled.clip(0, 65535)).astype(np.uint16)


def same_depth(ir: Array, vis: Array) -> tuple[Array, Array]:
    """Make both images uint16 when one is: 8 bits become 16 exactly (257 · 255 = 65535)."""
    return (ir, vis) if ir.dtype == vis.dtype else (_deep(ir), _deep(vis))


def _deep(image: Array) -> Array:
    return image if image.dtype == np.uint16 else image.astype(np.uint16) * 257
