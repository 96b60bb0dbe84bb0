"""Warp one picture onto another, by a matrix and, if known, the distortion of the lenses."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np

from .cameras import Camera

FADE = 0.03
"""share of the visible picture's shorter side over which the infrared one's edge fades"""


class Alignment(NamedTuple):
    """Where each pixel of the visible picture lies in the infrared one."""

    matrix: np.ndarray
    """[3, 3] float64: (x, y, 1) of the visible picture → (x, y, w) of the infrared one; both
    without their lenses' distortion where there are cameras"""
    model: str
    confidence: float
    """at 1 and above the map is reliable"""
    ir_camera: Camera | None = None
    vis_camera: Camera | None = None

    @property
    def sure(self) -> bool:
        """Whether it is reliable."""
        return self.confidence >= 1

    def points(self, at: np.ndarray) -> np.ndarray:
        """Return where points [N, 2] (x, y) of the visible picture lie in the infrared one."""
        if self.vis_camera is not None:
            at = self.vis_camera.ideal(at)
        x, y, w = self.matrix @ np.vstack([at.T, np.ones(len(at))])
        found = np.stack([x / w, y / w], 1)
        return found if self.ir_camera is None else self.ir_camera.bent(found)


def scaling(source: tuple[int, ...], target: tuple[int, ...]) -> np.ndarray:
    """Make the map from pixels of a picture [H, W] to those of it resized to ``target``."""
    y, x = target[0] / source[0], target[1] / source[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def apply(image: np.ndarray, alignment: Alignment, size: tuple[int, int]) -> np.ndarray:
    """Warp an infrared picture onto the visible one.

    Args:
        image: [H, W] or [H, W, 3], of a dtype that OpenCV interpolates (uint8, uint16, int16,
            float32, float64).
        alignment: The map of such a picture.
        size: (H, W) of the visible picture.

    Returns:
        [H, W] or [H, W, 3] of that size and dtype; outside of the infrared picture it is mirrored.
        ``field`` tells where that is.

    Raises:
        TypeError: ``alignment`` is not an :class:`Alignment`.
    """
    if not isinstance(alignment, Alignment):
        raise TypeError(
            f"alignment is a {type(alignment).__name__}; expected what ddfm_fast.align.estimate "
            "returns"
        )
    if alignment.ir_camera is None and alignment.vis_camera is None:
        return warped(image, alignment.matrix, size)
    x, y = _where(alignment, size)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def warped(image: np.ndarray, matrix: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Bring a picture to ``size`` by a map from its pixels to the picture's; mirrored outside."""
    return cv2.warpPerspective(
        image, matrix, size[1::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip


def field(
    alignment: Alignment, ir_size: tuple[int, int], size: tuple[int, int], fade: float = FADE
) -> np.ndarray | None:
    """Find where the visible picture's pixels are in the field of the infrared one.

    Args:
        alignment: The map between the two.
        ir_size: (H, W) of the infrared picture.
        size: (H, W) of the visible one.
        fade: Width of the edge, as a share of the shorter side of ``size``.

    Returns:
        [H, W] float32: 1 in the field, falling to 0 at its edge; None if it has no edge here.
    """
    inside = _inside(alignment, ir_size, size)
    if inside.all():
        return None
    distance = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 3)
    ramp = np.clip((distance - 0.5) / max(1.0, fade * min(size)), 0, 1)
    return (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)


def common(
    alignment: Alignment, ir_size: tuple[int, int], size: tuple[int, int]
) -> tuple[slice, slice]:
    """Find a rectangle of the visible picture in which the infrared one has every pixel.

    The side with most pixels that the infrared picture lacks is moved inwards by one pixel,
    until no side lacks any.

    Args:
        alignment: The map between the two.
        ir_size: (H, W) of the infrared picture.
        size: (H, W) of the visible one.

    Returns:
        Its rows and columns; empty ones if there is no such rectangle.
    """
    lacks = ~_inside(alignment, ir_size, size)
    top, left, (bottom, right) = 0, 0, size
    while top < bottom and left < right:
        sides = (
            lacks[top, left:right], lacks[bottom - 1, left:right],
            lacks[top:bottom, left], lacks[top:bottom, right - 1],
        )  # fmt: skip
        shares = [float(side.mean()) for side in sides]
        worst = int(np.argmax(shares))
        if shares[worst] == 0 and not lacks[top:bottom, left:right].any():
            return slice(top, bottom), slice(left, right)
        top, bottom = top + (worst == 0), bottom - (worst == 1)
        left, right = left + (worst == 2), right - (worst == 3)
    return slice(0, 0), slice(0, 0)


def _inside(
    alignment: Alignment, ir_size: tuple[int, int], size: tuple[int, int]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return where the infrared picture has a pixel, bool [H, W] of the visible one."""
    x, y = _where(alignment, size)
    height, width = ir_size
    return (x > -0.51) & (y > -0.51) & (x < width - 0.49) & (y < height - 0.49)


def _where(alignment: Alignment, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return where the pixels of the visible picture lie, x and y, float32 [H, W]."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    found = alignment.points(np.stack([x.ravel(), y.ravel()], 1)).astype(np.float32)
    return found[:, 0].reshape(size), found[:, 1].reshape(size)
