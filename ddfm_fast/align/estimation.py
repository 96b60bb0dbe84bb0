"""The shift, affine map or homography between two pictures, coarse to fine.

The whole pictures give a shift (``correlation``) and, if that does not stand out, a scale with it.
Then tiles are correlated, a map is fitted by RANSAC to the shifts that stand out, and the infrared
picture is warped by it; this is repeated with smaller tiles, in five rounds. Then OpenCV's ECC
(Evangelidis and Psarakis, PAMI 2008) refines the map by fractions of a pixel, on the cosine and on
the sine of the doubled directions. A map is believed if ECC converges on both and enough tiles
agree, or if fewer do and the aligned pictures correlate as well as a shift must.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from .correlation import REACH, SURE, Shift, directions, grays, peak, shift_between
from .warp import Alignment, scaling, warped

MODELS = ("shift", "affine", "homography")
SIDE = 640
"""pixels of the longer side to which pictures are reduced before maps are looked for"""
_SHARE, _VERIFIED = 0.44, 5.0
"""share of tiles that agree; or, for half as many, the confidence that no shift is left: either
makes a map sure, if ECC also converges from there"""
_ROUNDS = ((3, 1.6, 0.12), (4, 2.0, 0.08), (4, 2.4, 0.05), (5, 2.8, 0.03), (5, 2.8, 0.03))
"""tiles in a column, the shorter side over their size, and their reach over the longer side"""
_LEAST_SIDE, _LEAST_REACH, _LEAST_TILES, _TOLERANCE = 48, 8.0, 6, 2.0
"""least side of a tile; its least reach, beyond what belongs to a peak; least tiles that stand out;
pixels by which a tile may miss a map"""
_STANDS_OUT, _COVERED = 1.0, 0.7
"""confidence of a tile that counts; share of it that must be in the infrared picture"""
_SCALES, _SCALES_SIDE = np.geomspace(0.4, 2.5, 24), 240
"""scales tried if the plain start is not sure, relative to that at which the pictures just fit"""
_ECC = {
    "affine": cv2.MOTION_AFFINE,
    "homography": cv2.MOTION_HOMOGRAPHY,
}
_ECC_STEPS, _ECC_BLUR, _ECC_MOVES, _LEFT = 40, 5, 0.03, 1.5
"""iterations; pixels of its filter; how far it may move a corner, as a share of the longer side;
remaining pixels that count as none"""
_FINER = 4.0
"""pixels of shift that the last look, at full size, may add"""
_LEAST = 32
"""pixels of the shorter side below which nothing is believed"""


def estimate(ir: Any, vis: Any, model: str = "homography", *, value_range: Any = None) -> Alignment:
    """Estimate how an infrared picture must be moved to fit the visible one.

    Args:
        ir: The infrared picture, in any container that ``fuse`` takes and of any size.
        vis: The visible one. If the sizes differ, "shift" first scales the infrared one to it; the
            other models find the scale, from 0.4 to 2.5 times that at which they just fit.
        model: "shift", "affine" or "homography".
        value_range: As for ``fuse``.

    Returns:
        The map; if it is not ``sure``, leave the pictures as they are.

    Raises:
        ValueError: The model is unknown, or as in ``fuse``.
        TypeError: As in ``fuse``.
    """
    if model not in MODELS:
        raise ValueError(f"model is {model!r}; expected one of {', '.join(MODELS)}")
    return between(*grays(ir, vis, value_range), model)


def between(ir: np.ndarray, vis: np.ndarray, model: str) -> Alignment:
    """Estimate the map between planes [H, W] float32 in [0, 1]."""
    a, b = (_small(plane) for plane in (ir, vis))
    start = scaling(b.shape, a.shape)
    first = shift_between(_onto(a, start, b), b, REACH * max(b.shape) / max(vis.shape))
    if model != "shift":
        wide = shift_between(_onto(a, start, b), b, max(REACH, 0.08 * max(b.shape)))
        first = max(first, wide, key=lambda found: found.confidence)
        if not first.sure:
            start, first = _scaled_start(a, b, start, first)
    matrix = start @ _moves(first)
    agree = 0.0
    if model == "shift":
        matrix = matrix @ _finer(_onto(a, matrix, b), b)
        confidence = first.confidence / SURE
    else:
        matrix, agree, converged = _fine(a, b, matrix, model)
        verified = _rest(a, b, matrix) / _VERIFIED * (agree >= _SHARE / 2)
        confidence = max(agree / _SHARE, verified) if converged else min(0.9, agree)
    full = scaling(a.shape, ir.shape) @ matrix @ scaling(vis.shape, b.shape)
    full /= full[2, 2]
    if min(*ir.shape, *vis.shape) < _LEAST or not _plausible(matrix, start, b.shape):
        confidence = 0.0
    return Alignment(full, model, float(confidence))


def _finer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Find the small shift that is left between pictures correlated at a smaller size."""
    left = peak(directions(a), directions(b), _FINER + 2)
    return _moves(left) if np.hypot(left.x, left.y) < _FINER else np.eye(3)


def _small(plane: np.ndarray) -> np.ndarray:
    scale = SIDE / max(plane.shape)
    if scale >= 1:
        return plane
    size = tuple(max(1, round(n * scale)) for n in plane.shape[::-1])
    return cv2.resize(plane, size, interpolation=cv2.INTER_AREA)


def _onto(a: np.ndarray, matrix: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a if a.shape == b.shape and (matrix == np.eye(3)).all() else warped(a, matrix, b.shape)


def _moves(found: Shift) -> np.ndarray:
    return np.array([[1, 0, found.x], [0, 1, found.y], [0, 0, 1.0]])


def _inside(a: np.ndarray, matrix: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return float32 [H, W] of b: 1 where a has a pixel."""
    return cv2.warpPerspective(
        np.ones(a.shape, np.float32), matrix, b.shape[::-1],
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
    )  # fmt: skip


def _scaled_start(
    a: np.ndarray, b: np.ndarray, start: np.ndarray, first: Shift
) -> tuple[np.ndarray, Shift]:
    """Find the scale about the centers with the best correlation, and the shift."""
    k = min(1.0, _SCALES_SIDE / max(b.shape))
    size = tuple(max(16, round(n * k)) for n in b.shape)
    little = cv2.resize(b, size[::-1], interpolation=cv2.INTER_AREA)
    to_b, fields = scaling(size, b.shape), directions(little)
    fits = max(a.shape[0] / b.shape[0], a.shape[1] / b.shape[1])
    centers = [(n - 1) / 2 for n in (*b.shape[::-1], *a.shape[::-1])]
    best, blur = (max(SURE, first.confidence), start, first), a
    for scale in _SCALES * fits:
        x, y = centers[2] - scale * centers[0], centers[3] - scale * centers[1]
        matrix = np.array([[scale, 0, x], [0, scale, y], [0, 0, 1.0]])
        blur = cv2.GaussianBlur(a, (0, 0), max(0.3, 0.5 * scale / k))
        field = directions(warped(blur, matrix @ to_b, size))
        field *= _inside(a, matrix @ to_b, little)
        found = peak(field, fields, 0.15 * max(size))
        if found.confidence > best[0]:
            shift = Shift(found.x * b.shape[1] / size[1], found.y * b.shape[0] / size[0], 0.0)
            best = found.confidence, matrix, shift
    return best[1:]


def _fine(
    a: np.ndarray, b: np.ndarray, start: np.ndarray, model: str
) -> tuple[np.ndarray, float, bool]:
    """Find the map by tiles and ECC, the share of tiles that agree, and whether ECC agrees."""
    matrix, agree = _by_tiles(a, b, start, model)
    found, converged = _by_ecc(a, b, matrix, model)
    if converged or agree < _SHARE / 2:
        return found, agree, converged
    # a tile or two may have misled it: start once more from an affine map fitted to all tiles
    again, _ = _by_tiles(a, b, start, "affine")
    found, converged = _by_ecc(a, b, again, model)
    return (found, agree, True) if converged else (matrix, agree, False)


def _by_tiles(
    a: np.ndarray, b: np.ndarray, matrix: np.ndarray, model: str
) -> tuple[np.ndarray, float]:
    fields, agree = directions(b), 0.0
    for n, settings in enumerate(_ROUNDS):
        inside = _inside(a, matrix, b)
        moved = directions(_onto(a, matrix, b)) * inside
        change, agree = _fitted(moved, fields, inside, settings, model if n else "affine")
        if change is None:
            break
        matrix = matrix @ change
        matrix /= matrix[2, 2]
    return matrix, agree


def _fitted(
    a: np.ndarray,
    b: np.ndarray,
    inside: np.ndarray,
    settings: tuple[int, float, float],
    model: str,
) -> tuple[np.ndarray | None, float]:
    """Fit a map [3, 3] from b to a, with the share of tiles that agree; None if too few do."""
    rows, fraction, reach = settings
    part = _box(inside)
    top, left, (height, width) = part[0].start, part[1].start, b[part].shape
    least = min(height, width)
    if least < _LEAST:
        return None, 0.0
    side = int(min(max(_LEAST_SIDE, least / fraction), least)) // 2 * 2
    at, to, tiles = [], [], 0
    for y in top + np.linspace(0, height - side, rows).astype(int):
        for x in left + np.linspace(0, width - side, rows + 1).astype(int):
            part = slice(y, y + side), slice(x, x + side)
            if inside[part].mean() < _COVERED:
                continue
            tiles += 1
            found = peak(a[part], b[part], max(_LEAST_REACH, reach * max(height, width)))
            if found.confidence > _STANDS_OUT:
                center = x + side / 2, y + side / 2
                at.append(center)
                to.append((center[0] + found.x, center[1] + found.y))
    if len(at) < _LEAST_TILES:
        return None, 0.0
    matrix, agree = _by_ransac(np.asarray(at, np.float32), np.asarray(to, np.float32), model)
    return matrix, 0.0 if matrix is None else float(agree.sum()) / tiles


def _by_ransac(at: np.ndarray, to: np.ndarray, model: str) -> tuple[np.ndarray | None, np.ndarray]:
    cv2.setRNGSeed(0)  # the same result each time
    if model == "homography":
        return cv2.findHomography(at, to, cv2.RANSAC, _TOLERANCE)
    matrix, agree = cv2.estimateAffine2D(
        at, to, method=cv2.RANSAC, ransacReprojThreshold=_TOLERANCE
    )
    return (None if matrix is None else np.vstack([matrix, [0, 0, 1]])), agree


def _by_ecc(
    a: np.ndarray, b: np.ndarray, matrix: np.ndarray, model: str
) -> tuple[np.ndarray, bool]:
    """Refine the map by ECC on both parts of the fields; also return whether both converged."""
    whole = model == "homography"
    start = (matrix if whole else matrix[:2]).astype(np.float32)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _ECC_STEPS, 1e-4)
    scale = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    kept = []
    everywhere = np.full(a.shape, 255, np.uint8)
    fields = directions(a), directions(b)
    for part in ("real", "imag"):
        source, target = (np.ascontiguousarray(getattr(field, part)) for field in fields)
        try:
            _, found = cv2.findTransformECC(
                target, source, start.copy(), _ECC[model], stop, everywhere, _ECC_BLUR
            )
        except cv2.error:  # it did not converge, or a picture is constant
            continue
        found = found.astype(np.float64)
        found = found if whole else np.vstack([found, [0, 0, 1]])
        far = np.abs(_corners(found, b.shape) - _corners(matrix, b.shape)).max()
        if far <= _ECC_MOVES * max(b.shape) * scale:  # false for NaN, too
            kept.append(found)
    return (np.mean(kept, 0), True) if len(kept) == 2 else (matrix, False)


def _rest(a: np.ndarray, b: np.ndarray, matrix: np.ndarray) -> float:
    """Return the confidence that no shift is left; 0 if one is."""
    part = _box(_inside(a, matrix, b))
    if min(b[part].shape) < _LEAST:
        return 0.0
    left = shift_between(_onto(a, matrix, b)[part], b[part], REACH)
    return left.confidence if np.hypot(left.x, left.y) < _LEFT else 0.0


def _box(inside: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns in which anything is inside."""
    found = [np.flatnonzero(inside.any(axis)) for axis in (1, 0)]
    rows, columns = (slice(n[0], n[-1] + 1) if len(n) else slice(0, 0) for n in found)
    return rows, columns


def _corners(matrix: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    height, width = size
    at = np.array([[0, width, width, 0], [0, 0, height, height], [1, 1, 1, 1.0]])
    x, y, w = matrix @ at
    w = np.where(np.abs(w) < 1e-9, 1e-9, w)
    return np.stack([x / w, y / w])


def _plausible(matrix: np.ndarray, start: np.ndarray, size: tuple[int, ...]) -> bool:
    """Return whether a map turns nothing over and changes no side by half against its start."""
    got, was = _corners(matrix, size), _corners(start, size)
    sides, before = (np.roll(c, -1, 1) - c for c in (got, was))
    turns = sides[0] * np.roll(sides[1], -1) - sides[1] * np.roll(sides[0], -1)
    ratio = np.hypot(*sides) / np.hypot(*before)
    return bool((turns > 0).all() and (ratio > 0.5).all() and (ratio < 2).all())
