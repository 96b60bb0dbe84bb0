"""Bring the pictures of a pair to one size and depth, and put them beside their fusion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..files.depth import Levels, Sources, nodata_of, resized, sources
from ..files.guards import Picture
from ..files.reading import DEFAULT_MAX_PIXELS
from ..images.doubts import warn
from ..images.planes import MIN_SIZE, to_planes
from ..images.ranges import NAMES, by_source, ignored, is_signed
from ..images.steady import SteadyRanges
from .frames import Source, VideoError
from .pairing import FramePair

Resize = str | tuple[int, int] | None


class Fit:
    """Brings the pictures of a pair to one size and depth."""

    def __init__(
        self,
        ir: Source,
        vis: Source,
        resize: Resize = None,
        ir_range: Any = None,
        vis_range: Any = None,
        nodata: Any = None,
        *,
        aligned: bool = False,
    ):
        """See ``resize``, ``ir_range``, ``vis_range`` and ``nodata`` of `fuse_video`.

        ``aligned``: a map, found later, brings infrared frames to the visible size.

        Raises:
            VideoError: The sizes differ, ``resize`` is None, and no map is looked for.
            ValueError: An argument is out of range; TypeError if ``nodata`` is not a number.
        """
        self.size = vis.size if aligned and resize is None else _target_size(ir, vis, resize)
        self._wanted = {
            "ir": _checked_range(ir_range, "ir"),
            "vis": _checked_range(vis_range, "vis"),
        }
        self._nodata = by_source(nodata, "nodata")
        for value in self._nodata.values():
            ignored(value)
        self._ranges = SteadyRanges()
        self._found: dict[str, Any] = {}
        self._resized = resize is not None
        self._shapes: dict[str, tuple] = {}
        self._told: set[str] = set()

    def __call__(self, pair: FramePair) -> Sources:
        """Return infrared and visible, uint8 or both uint16, [H, W] or [H, W, 3].

        The values of black and white follow the frames unless they are given.
        """
        pictures, nodata = self._read(pair)
        self._found = self._ranges(pictures[0], pictures[1], self._wanted, nodata)
        return self._leveled(pair, pictures, nodata)

    def at_cut(self, pair: FramePair) -> Sources | None:
        """Return the last pair, read as the first of a scene; None if that changes nothing."""
        pictures, nodata = self._read(pair)
        found = self._ranges(pictures[0], pictures[1], self._wanted, nodata, cut=True)
        same, self._found = found == self._found, found
        return None if same else self._leveled(pair, pictures, nodata)

    def _read(self, pair: FramePair) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Return the pictures, with their own dtype and size, and their values of missing data."""
        pictures, nodata = [], {}
        for name, frame in (("ir", pair.ir), ("vis", pair.vis)):
            image = _pixels(frame.image, name)
            own = Picture(image, frame.nodata)
            nodata[name] = nodata_of(own, self._nodata[name], name, told=name not in self._told)
            if nodata[name] is not None:
                self._told.add(name)
            pictures.append(image)
        return pictures, nodata

    def _leveled(
        self, pair: FramePair, pictures: list[np.ndarray], nodata: dict[str, Any]
    ) -> Sources:
        """Return the pictures at one depth and one size."""
        found = sources(pictures[0], pictures[1], Levels(self._found, nodata))
        sized = [
            self._sized(image, hole, name, frame.number)
            for name, image, hole, frame in zip(
                ("ir", "vis"), (found.ir, found.vis), found.holes, pair, strict=True
            )
        ]
        (ir, in_ir), (vis, in_vis) = sized
        return Sources(ir, vis, (in_ir, in_vis))

    def _sized(
        self, image: np.ndarray, hole: np.ndarray | None, name: str, number: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        if self._resized:
            if self.size is None:
                raise VideoError(
                    f"resize needs the size of {name}, which an iterator does not give"
                )
            if image.shape[:2] == self.size:
                return image, hole
            if hole is not None:
                hole = resized(hole.astype(np.float32), self.size) > 0
            return resized(image, self.size), hole
        first = self._shapes.setdefault(name, image.shape)
        if image.shape != first:
            raise VideoError(
                f"{name}: frame {number} has shape {image.shape} after {first}; expected "
                "frames of one size, or --resize"
            )
        return image, hole


def beside(ir: np.ndarray, vis: np.ndarray, fused: np.ndarray) -> np.ndarray:
    """Put infrared | visible | fused in one picture, RGB if any is; uint8 or uint16, all alike.

    The sources are cropped at the bottom and right to the size of the fused picture.
    """
    pictures = [p[..., 0] if p.ndim == 3 and p.shape[2] == 1 else p for p in (ir, vis, fused)]
    height, width = fused.shape[:2]
    pictures = [p[:height, :width] for p in pictures]
    if any(p.ndim == 3 for p in pictures):
        pictures = [np.dstack([p] * 3) if p.ndim == 2 else p for p in pictures]
    return np.concatenate(pictures, axis=1)


def settle_aspect(ir: Source, vis: Source, resize: Resize, *, pictures: bool) -> None:
    """Report what becomes of non-square pixels; a video of the visible size keeps them.

    Args:
        ir: The infrared stream.
        vis: The visible one, whose ``pixel_aspect`` the output takes.
        resize: As `Fit` takes it.
        pictures: Whether the output is PNG files, which cannot state the aspect.
    """
    aspect = vis.pixel_aspect
    shape = "" if aspect is None else f"vis has pixels of {aspect.numerator}:{aspect.denominator}"
    if resize not in (None, "vis"):
        vis.pixel_aspect = None
        if shape:
            warn(f"{shape}; resized, they count as square (--resize)")
    elif shape and pictures:
        warn(f"{shape}, which PNG files do not say; --resize WIDTHxHEIGHT makes them square")
    elif resize is None and ir.pixel_aspect != aspect and ir.color_tags and vis.color_tags:
        other = ir.pixel_aspect or 1
        warn(
            f"the pixels of ir are {other.numerator}:{other.denominator} and those of vis "
            f"{'1:1' if aspect is None else shape.rpartition(' ')[2]}; they are fused one to one"
        )


def _pixels(image: Any, name: str) -> np.ndarray:
    """Convert any container to NumPy; floats in [0, 1] of other containers become uint16."""
    plain = isinstance(image, np.ndarray) and (
        image.dtype in (np.uint8, np.uint16) or image.dtype.kind == "f" or is_signed(image)
    )
    if plain:
        return image
    planes, spec = to_planes(image, name)
    channels = planes[0].permute(1, 2, 0)
    top = 255 if str(spec.dtype) == "torch.uint8" else 65535
    values = (channels * top).round().cpu().numpy()
    values = values.astype(np.uint8 if top == 255 else np.uint16)
    return values[..., 0] if values.shape[2] == 1 else values


def _target_size(ir: Source, vis: Source, resize: Resize) -> tuple[int, int] | None:
    if resize is None:
        if ir.size and vis.size and ir.size != vis.size:
            (a, b), (c, d) = ir.size, vis.size
            raise VideoError(
                f"ir has {b}x{a} pixels and vis {d}x{c}; expected aligned streams of one size: "
                "register them first (--align homography), or let --resize vis bring infrared to "
                "the visible size"
            )
        return vis.size
    if resize in ("ir", "vis"):
        return (ir if resize == "ir" else vis).size
    try:
        height, width = (int(n) for n in resize)
    except (TypeError, ValueError):
        raise ValueError(f'resize is {resize!r}; expected "vis", "ir" or (height, width)') from None
    if min(height, width) < MIN_SIZE or height * width > DEFAULT_MAX_PIXELS:
        raise ValueError(
            f"resize is {resize!r}; expected at least {MIN_SIZE} a side and at most "
            f"{DEFAULT_MAX_PIXELS} pixels"
        )
    return height, width


def _checked_range(setting: Any, name: str) -> Any:
    if setting is None or setting in NAMES:
        return setting
    try:
        low, high = (float(n) for n in setting)
    except (TypeError, ValueError):
        low = high = 0.0
    if not (math.isfinite(high - low) and low < high):
        raise ValueError(
            f"{name}_range is {setting!r}; expected finite numbers (lo, hi), lo < hi, or one of "
            + ", ".join(NAMES)
        )
    return low, high
