"""A picture brought to where another one is: by a matrix and, if known, what the lenses do."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from .cameras import Camera

FADE = 0.03
"""of the visible picture's shorter side, over which the infrared one's edge is faded"""


class Alignment(NamedTuple):
    """Where each pixel of the visible picture lies in the infrared one."""

    matrix: np.ndarray
    """[3, 3] float64: (x, y, 1) of the visible picture → (x, y, w) of the infrared one; both
    without their lenses' distortion where there are cameras"""
    model: str
    confidence: float
    """1 and above: believe it"""
    ir_camera: Camera | None = None
    vis_camera: Camera | None = None

    @property
    def sure(self) -> bool:
        """Whether to believe it."""
        return self.confidence >= 1

    def points(self, at: np.ndarray) -> np.ndarray:
        """Where points [N, 2] (x, y) of the visible picture lie in the infrared one."""
        if self.vis_camera is not None:
            at = self.vis_camera.ideal(at)
        x, y, w = self.matrix @ np.vstack([at.T, np.ones(len(at))])
        found = np.stack([x / w, y / w], 1)
        return found if self.ir_camera is None else self.ir_camera.bent(found)


def scaling(source: tuple[int, ...], target: tuple[int, ...]) -> np.ndarray:
    """Make the map of pixels of a picture [H, W] to those of the same, resized to ``target``."""
    y, x = target[0] / source[0], target[1] / source[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def apply(image: np.ndarray, alignment: Alignment, size: tuple[int, int]) -> np.ndarray:
    """Bring an infrared picture to where the visible one is.

    Args:
        image: [H, W] or [H, W, 3], of a dtype that OpenCV interpolates (uint8, uint16, int16,
            float32, float64).
        alignment: Of such a picture.
        size: (H, W) of the visible picture.

    Returns:
        [H, W] or [H, W, 3] of that size and dtype; outside of the infrared picture it is mirrored.
        ``field`` says where that is.

    Raises:
        TypeError: ``alignment`` is none.
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
        alignment: Of the two.
        ir_size: (H, W) of the infrared picture.
        size: (H, W) of the visible one.
        fade: How wide the edge is, of the shorter side of ``size``.

    Returns:
        [H, W] float32: 1 in the field, falling to 0 at its edge; None where it has no edge here.
    """
    x, y = _where(alignment, size)
    height, width = ir_size
    inside = (x > -0.51) & (y > -0.51) & (x < width - 0.49) & (y < height - 0.49)
    if inside.all():
        return None
    distance = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 3)
    ramp = np.clip((distance - 0.5) / max(1.0, fade * min(size)), 0, 1)
    return (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)


def _where(alignment: Alignment, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels of the visible picture lie, x and y, float32 [H, W]."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    found = alignment.points(np.stack([x.ravel(), y.ravel()], 1)).astype(np.float32)
    return found[:, 0].reshape(size), found[:, 1].reshape(size)
