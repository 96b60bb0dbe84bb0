"""Affine maps and homographies between two pictures, from the shifts of their parts.

Tiles are correlated (``correlation.peak``), a map is fitted by RANSAC to the shifts that stand out,
the infrared picture is warped by it, and that again with smaller tiles: five rounds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np

from .correlation import REACH, directions, gray, peak, shift_between

MODELS = ("shift", "affine", "homography")
SURE = 0.4
"""share of the tiles that agree on a map, from which it is taken for one"""
_ROUNDS = ((3, 1.6, 0.12), (4, 2.0, 0.08), (4, 2.4, 0.05), (5, 2.8, 0.03), (5, 2.8, 0.03))
"""tiles in a column, the shorter side over their size, and their reach over the longer side"""
_LEAST_SIDE, _LEAST_TILES, _TOLERANCE = 48, 6, 2.0
"""of a tile; that must stand out; pixels by which a tile may miss a map"""
_STANDS_OUT = 1.0


class Alignment(NamedTuple):
    """Where each pixel of the visible picture lies in the infrared one."""

    matrix: np.ndarray
    """[3, 3] float64: (x, y, 1) of the visible picture → (x, y, w) of the infrared one"""
    model: str
    confidence: float
    """of a shift, as ``Shift.confidence``; else the share of tiles that agree"""
    sure: bool
    """whether to believe it"""


def estimate(ir: Any, vis: Any, model: str = "homography", *, value_range: Any = None) -> Alignment:
    """Estimate how an infrared picture must be moved to fit the visible one.

    Args:
        ir: The infrared picture, of any container that ``fuse`` takes.
        vis: The visible one; of another size, the infrared one is first scaled to it.
        model: "shift", "affine" or "homography".
        value_range: As for ``fuse``.

    Returns:
        The map; where it is not ``sure``, leave the pictures as they are.

    Raises:
        ValueError: An unknown model; else as ``fuse`` raises.
        TypeError: As ``fuse`` raises it.
    """
    if model not in MODELS:
        raise ValueError(f"model is {model!r}; expected one of {', '.join(MODELS)}")
    source, b = gray(ir, "ir", value_range), gray(vis, "vis", value_range)
    (height, width), (own_height, own_width) = b.shape, source.shape
    scale = np.diag([own_width / width, own_height / height, 1.0])
    a = source if source.shape == b.shape else cv2.resize(source, (width, height))
    first = shift_between(a, b, REACH if model == "shift" else max(REACH, 0.08 * max(a.shape)))
    matrix = np.array([[1, 0, first.x], [0, 1, first.y], [0, 0, 1.0]])
    if model == "shift":
        return Alignment(scale @ matrix, model, first.confidence, first.sure)
    fields, agree = directions(b), 0.0
    for n, settings in enumerate(_ROUNDS):
        moved = directions(_warped(a, matrix, (height, width)))
        change, agree = _fitted(moved, fields, settings, model if n else "affine")
        if change is None:
            break
        matrix = matrix @ change
        matrix /= matrix[2, 2]
    return Alignment(scale @ matrix, model, agree, agree >= SURE)


def apply(image: np.ndarray, alignment: Alignment, size: tuple[int, int]) -> np.ndarray:
    """Bring an infrared picture to where the visible one is.

    Args:
        image: [H, W] or [H, W, 3], of a dtype that OpenCV interpolates (uint8, uint16, int16,
            float32, float64).
        alignment: Of such a picture.
        size: (H, W) of the visible picture.

    Returns:
        [H, W] or [H, W, 3] of that size and dtype; outside of the infrared picture it is mirrored.
    """
    return _warped(image, alignment.matrix, size)


def _warped(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.warpPerspective(
        image, matrix, size[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip


def _fitted(
    a: np.ndarray, b: np.ndarray, settings: tuple[int, float, float], model: str
) -> tuple[np.ndarray | None, float]:
    """A map [3, 3] from b to a, and the share of tiles that agree; None where too few stand out."""
    rows, fraction, reach = settings
    height, width = b.shape
    side = int(min(max(_LEAST_SIDE, min(b.shape) / fraction), min(b.shape))) // 2 * 2
    at, to = [], []
    for y in np.linspace(0, height - side, rows).astype(int):
        for x in np.linspace(0, width - side, rows + 1).astype(int):
            part = slice(y, y + side), slice(x, x + side)
            found = peak(a[part], b[part], reach * max(b.shape))
            if found.confidence > _STANDS_OUT:
                center = x + side / 2, y + side / 2
                at.append(center)
                to.append((center[0] + found.x, center[1] + found.y))
    if len(at) < _LEAST_TILES:
        return None, 0.0
    matrix, agree = _by_ransac(np.asarray(at, np.float32), np.asarray(to, np.float32), model)
    share = 0.0 if matrix is None else float(agree.sum()) / (rows * (rows + 1))
    return matrix, share


def _by_ransac(at: np.ndarray, to: np.ndarray, model: str) -> tuple[np.ndarray | None, np.ndarray]:
    cv2.setRNGSeed(0)  # the same result each time
    if model == "homography":
        return cv2.findHomography(at, to, cv2.RANSAC, _TOLERANCE)
    matrix, agree = cv2.estimateAffine2D(
        at, to, method=cv2.RANSAC, ransacReprojThreshold=_TOLERANCE
    )
    return (None if matrix is None else np.vstack([matrix, [0, 0, 1]])), agree
