"""The pictures of a pair brought to one size and depth, and beside their fusion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..files.depth import resized, same_depth, to_16_bits
from ..files.reading import DEFAULT_MAX_PIXELS
from ..images.doubts import warn
from ..images.planes import MIN_SIZE, to_planes
from ..images.ranges import NAMES, FirstFrame, is_signed
from .frames import Frame, Source, VideoError
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
        *,
        aligned: bool = False,
    ):
        """See ``resize``, ``ir_range`` and ``vis_range`` of `fuse_video`.

        ``aligned``: a map that is found later brings infrared to the visible size.

        Raises:
            VideoError: The sizes differ, ``resize`` is None, and no map is looked for.
            ValueError: An argument out of range.
        """
        self.size = vis.size if aligned and resize is None else _target_size(ir, vis, resize)
        self._wanted = {
            "ir": _checked_range(ir_range, "ir"),
            "vis": _checked_range(vis_range, "vis"),
        }
        self._ranges = FirstFrame()
        self._resized = resize is not None
        self._shapes: dict[str, tuple] = {}

    def __call__(self, pair: FramePair) -> tuple[np.ndarray, np.ndarray]:
        """Return (infrared, visible), uint8 or both uint16, [H, W] or [H, W, 3].

        The first pair decides what black and white are where nothing else does.
        """
        ir, vis = self._picture(pair.ir, "ir"), self._picture(pair.vis, "vis")
        ranges = self._ranges(ir, vis, self._wanted)
        ir, vis = (
            image if ranges[name] == "dtype" else to_16_bits(image, *ranges[name])
            for name, image in (("ir", ir), ("vis", vis))
        )
        return same_depth(ir, vis)

    def _picture(self, frame: Frame, name: str) -> np.ndarray:
        image = _pixels(frame.image, name)
        if self._resized:
            if self.size is None:
                raise VideoError(
                    f"resize needs the size of {name}, which an iterator does not tell"
                )
            if image.shape[:2] != self.size:
                return resized(image, self.size)
        first = self._shapes.setdefault(name, image.shape)
        if image.shape != first:
            raise VideoError(
                f"{name}: frame {frame.number} has shape {image.shape} after {first}; expected "
                "frames of one size, or --resize"
            )
        return image


def beside(ir: np.ndarray, vis: np.ndarray, fused: np.ndarray) -> np.ndarray:
    """Put infrared | visible | fused in one picture, RGB where any is; uint8 or uint16, all alike.

    The sources are cropped at the bottom and right to the size of the fused picture.
    """
    pictures = [p[..., 0] if p.ndim == 3 and p.shape[2] == 1 else p for p in (ir, vis, fused)]
    height, width = fused.shape[:2]
    pictures = [p[:height, :width] for p in pictures]
    if any(p.ndim == 3 for p in pictures):
        pictures = [np.dstack([p] * 3) if p.ndim == 2 else p for p in pictures]
    return np.concatenate(pictures, axis=1)


def settle_aspect(ir: Source, vis: Source, resize: Resize, *, pictures: bool) -> None:
    """Say what becomes of pixels that are not square; a video of the visible size keeps them.

    Args:
        ir: The infrared stream.
        vis: The visible one, whose ``pixel_aspect`` the output takes.
        resize: As `Fit` takes it.
        pictures: Whether the output is PNG files, which do not say.
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
    """An image of any container as NumPy; floats in [0, 1] of other containers become uint16."""
    plain = isinstance(image, np.ndarray) and (
        image.dtype in (np.uint8, np.uint16, np.float32) or is_signed(image)
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
