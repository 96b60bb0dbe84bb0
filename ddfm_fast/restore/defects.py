"""Find the stripes and stuck pixels of uncooled infrared sensors, and remove only what was found.

Stripes are fixed offsets of whole columns or rows. The differences of neighboring columns are
averaged in horizontal bands, clipped so that edges of the scene count little. Offsets of the
sensor are the same in every band and in every part of the width, are independent from column to
column, and are no regular pattern; vertical structures of a scene fail at least one of these. Only
then are the offsets estimated, by robust least squares on differences of several distances with a
prior of independent offsets, which leaves the slow shading of the scene alone.

Stuck pixels are at the end of the range, and what is around them is not: a lens cannot make a
point without a soft edge. A picture in which such points are the exception among its clipped spots
is left as it is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_Floats = npt.NDArray[np.float32]
_Bools = npt.NDArray[np.bool_]

_BANDS = 8
_SHADING = 31
"""columns that the slow part of a profile is averaged over"""
_MIN_SIDE = 32
"""columns and rows below which nothing can be told from so few samples"""
_BLOCK = 16
"""columns that a band must agree with the others on"""
_MIN_BLOCKS = 16
_AGREEMENT = 0.3
"""correlation with the other bands that four fifths of the blocks reach: stripes .32, scenes .25"""
_TYPICAL_AGREEMENT = 0.45
_MIN_STEP = 1.3
"""gray levels, standard deviation of the differences of neighboring offsets"""
_SPARSE = 0.4
"""least ratio of the median to the mean size of the differences: a few edges are no stripes"""
_INDEPENDENT = -0.2
"""most correlation of successive differences: -.5 for independent offsets, positive for bars"""
_LONGEST_PERIOD = 16

_DISTANCES = (1, 2, 4)
_WINDOW = 7
"""rows averaged before the fit: keeps stripes and edges, lessens noise"""
_ROUNDS = 4
_SLOW = 0.8
"""prior of independent offsets, in squared gray levels: how much slow shading a scene has"""

_STEP = 20
"""gray levels by which a stuck pixel differs at least"""
_SPREADS = 6.0
"""local standard deviations by which a point differs that decides about its picture"""
_SPREADS_OF_MORE = 4.5
"""local standard deviations of the others, once the picture is known to have stuck pixels"""
_SOFT = 0.3
"""share of a point's height that its direct neighbors may have"""
_MAX_STUCK = 0.05
_GROUPED = 0.2
"""share of the points that may have a neighbor beyond what chance gives to so many"""
_MAX_NEIGHBORS = 4
_MIN_KNOWN = 12
"""least pixels of the 5 x 5 that are no points themselves"""
_SHARP = 0.85
"""share of the far points that must stand alone: stuck pixels .95, scenes .75; six at least"""
_CLEAR = 0.04
"""share of all clipped points that must: stuck pixels .06, scenes .03"""
_NEAR = [6, 7, 8, 11, 13, 16, 17, 18]
_DIRECT = [7, 11, 13, 17]
"""positions of the eight and of the four neighbors in 5 x 5 pixels"""


class Defects(NamedTuple):
    """What was removed from one image; all zero for a picture that was left as it is.

    columns: standard deviation of the column offsets, in gray levels of 255.
    rows: standard deviation of the row offsets, in gray levels of 255.
    dead: number of pixels replaced.
    """

    columns: float
    rows: float
    dead: int


class _Profile(NamedTuple):
    """Mean differences of neighboring columns in each band, and the share of usable pixels."""

    steps: _Floats
    weights: _Floats


def remove_defects(luma: Tensor) -> tuple[Tensor, list[Defects]]:
    """Remove stripes and stuck pixels where a picture clearly has them.

    Args:
        luma: float32 [N, 1, H, W] in [0, 1], H and W at least 16. Each image is judged on its own.
            Stripes are looked for where H and W are at least 32.

    Returns:
        The planes on luma's device, and one `Defects` per image. Images without defects keep their
        bytes; where no image has any, luma itself comes back.

    Raises:
        ValueError: luma has another shape or dtype.
    """
    if luma.ndim != 4 or luma.shape[1] != 1 or min(luma.shape[2:]) < 16:
        raise ValueError(
            f"luma must be [N, 1, H, W] with H and W at least 16; it is {list(luma.shape)}"
        )
    if luma.dtype != torch.float32:
        raise ValueError(f"luma must be float32; it is {luma.dtype}: convert it with luma.float()")
    planes = luma.detach().cpu()[:, 0].numpy()
    restored = [_restore(np.ascontiguousarray(plane)) for plane in planes]
    found = [defects for _, defects in restored]
    if all(defects == Defects(0.0, 0.0, 0) for defects in found):
        return luma, found
    result = torch.from_numpy(np.stack([plane for plane, _ in restored]))[:, None]
    return result.to(luma.device), found


def _restore(plane: _Floats) -> tuple[_Floats, Defects]:
    """Restore one plane [H, W] in [0, 1]; without defects it comes back itself."""
    levels = plane * np.float32(255)
    columns = _stripes(levels)
    if columns is not None:
        levels = _without(levels, columns)
    turned = _turned(levels)
    rows = _stripes(turned)
    if rows is not None:
        levels = _turned(_without(turned, rows))
    if columns is not None or rows is not None:
        plane = levels / np.float32(255)
    stuck = _stuck(levels)
    dead = int(np.count_nonzero(stuck))
    if dead:
        plane = _filled(plane, stuck)
    return plane, Defects(_deviation(columns), _deviation(rows), dead)


def _turned(levels: _Floats) -> _Floats:
    return np.asarray(cv2.transpose(levels), np.float32)


def _deviation(offsets: _Floats | None) -> float:
    return 0.0 if offsets is None else float(offsets.std())


def _unclipped(levels: _Floats) -> _Bools:
    """Return which pixels are inside the range: the others do not show their column's offset."""
    return (levels > 0.5) & (levels < 254.5)


def _without(levels: _Floats, offsets: _Floats) -> _Floats:
    """Subtract the offset of each column, except from clipped pixels: black ground stays black."""
    shifted = np.clip(levels - offsets, 0, 255)
    return np.where(_unclipped(levels), shifted, levels)


def _stripes(levels: _Floats) -> _Floats | None:
    """Return the offset of each column; None if the picture has no stripes."""
    if min(levels.shape) < _MIN_SIDE:
        return None
    profile = _profile(levels)
    if profile is None or not _bands_agree(profile):
        return None
    mean = _mean(profile)
    if not (_is_dense(mean) and _is_white(mean)):
        return None
    return _offsets(levels, float(mean.std()) / math.sqrt(2))


def _profile(levels: _Floats) -> _Profile | None:
    """Average the clipped differences of neighboring columns in each band."""
    height = levels.shape[0] // _BANDS * _BANDS
    levels = levels[:height]
    inside = _unclipped(levels)
    usable = inside[:, 1:] & inside[:, :-1]
    steps = levels[:, 1:] - levels[:, :-1]
    steps *= usable
    samples = steps.ravel()[::7]
    samples = np.abs(samples[usable.ravel()[::7]])
    if samples.size < 64:
        return None
    limit = 2 * float(np.partition(samples, samples.size // 2)[samples.size // 2]) + 2
    np.clip(steps, -limit, limit, out=steps)
    share = _band_means(usable.astype(np.float32))
    mean = _band_means(steps) / np.maximum(share, np.float32(1e-3))
    mean -= cv2.blur(mean, (_SHADING, 1), borderType=cv2.BORDER_REFLECT)
    share[share < 0.5] = 0
    return _Profile(np.asarray(mean, np.float32), share)


def _band_means(values: _Floats) -> _Floats:
    means = cv2.resize(values, (values.shape[1], _BANDS), interpolation=cv2.INTER_AREA)
    return np.asarray(means, np.float32)


def _mean(profile: _Profile) -> _Floats:
    """Average the bands, over the columns that enough of them show."""
    weights = profile.weights.sum(0)
    mean = (profile.steps * profile.weights).sum(0) / np.maximum(weights, np.float32(1e-3))
    return mean[weights >= _BANDS / 3]


def _bands_agree(profile: _Profile) -> bool:
    """Correlate each block of a band with the same columns of all other bands."""
    steps, weights = profile
    others = weights.sum(0) - weights
    rest = (steps * weights).sum(0) - steps * weights
    rest = np.where(others >= _BANDS / 3, rest / np.maximum(others, np.float32(1e-3)), 0)
    starts = np.arange(0, steps.shape[1] - _BLOCK + 1, _BLOCK)
    sums = [
        np.add.reduceat(values * weights, starts, axis=1)
        for values in (steps * rest, steps * steps, rest * rest, np.ones_like(steps))
    ]
    shown = sums[3] >= 0.4 * _BLOCK
    if np.count_nonzero(shown) < _MIN_BLOCKS:
        return False
    correlation = (sums[0] / np.sqrt(np.maximum(sums[1] * sums[2], 1e-9)))[shown]
    low, typical = np.quantile(correlation, (0.2, 0.5))
    return bool(low >= _AGREEMENT and typical >= _TYPICAL_AGREEMENT)


def _is_dense(mean: _Floats) -> bool:
    """Return whether the offsets are strong enough, and not the few edges of bars."""
    if mean.size < _MIN_SIDE // 2:
        return False
    deviation = float(mean.std())
    typical = float(np.median(np.abs(mean))) / 0.6745
    return deviation >= _MIN_STEP and typical >= _SPARSE * deviation


def _is_white(mean: _Floats) -> bool:
    """Return whether the offsets are independent of each other and have no period."""
    centered = mean - mean.mean()
    successive = float(centered[1:] @ centered[:-1]) / float(centered @ centered)
    if successive > _INDEPENDENT:
        return False
    power = np.abs(np.fft.rfft(centered)) ** 2
    frequency = np.arange(power.size) * (2 * math.pi / centered.size)
    short = frequency > 2 * math.pi / _LONGEST_PERIOD
    # differences of white offsets have this spectrum; divided by it, theirs is flat
    power = power[short] / (2 - 2 * np.cos(frequency[short]))
    # Fisher's test: the largest of n equal exponential terms, at one in a thousand, plus slack
    largest = 1.5 * (math.log(power.size) + 7) / power.size
    return bool(power.max() <= largest * power.sum())


def _offsets(levels: _Floats, sigma: float) -> _Floats:
    """Fit the offset of each column to the differences of columns 1, 2 and 4 apart.

    Each round gives edges of the scene less weight (Geman and McClure) and solves the normal
    equations, whose prior of independent offsets of deviation ``sigma`` holds back slow shading.
    """
    width = levels.shape[1]
    inside = _unclipped(levels).astype(np.float32)
    share = np.asarray(cv2.blur(inside, (1, _WINDOW))[:: _WINDOW // 2], np.float32)
    smooth = cv2.blur(levels * inside, (1, _WINDOW))[:: _WINDOW // 2]
    smooth = np.asarray(smooth / np.maximum(share, np.float32(1e-3)), np.float32)
    share[share < 0.5] = 0
    prior = min(_SLOW / sigma**2, 0.3)
    offsets = np.zeros(width, np.float32)
    for _ in range(_ROUNDS):
        matrix, right = _normal_equations(smooth - offsets, share)
        strength = prior * float(np.trace(matrix)) / width + 1e-9
        right -= strength * offsets
        matrix[np.arange(width), np.arange(width)] += strength
        offsets = offsets + np.linalg.solve(matrix, right).astype(np.float32)
    return offsets - np.float32(np.median(offsets))


def _normal_equations(plane: _Floats, share: _Floats) -> tuple[np.ndarray, np.ndarray]:
    """Sum the weighted differences of all rows for the least squares of `_offsets`."""
    width = plane.shape[1]
    matrix, right = np.zeros((width, width)), np.zeros(width)
    for distance in _DISTANCES:
        steps = plane[:, distance:] - plane[:, :-distance]
        usable = np.minimum(share[:, distance:], share[:, :-distance])
        scale = 1.5 * float(np.median(np.abs(steps))) / 0.6745 + 0.5
        weights = usable / np.square(1 + np.square(steps * np.float32(1 / scale)))
        total = weights.sum(0, dtype=np.float64) / scale**2
        pull = (weights * steps).sum(0, dtype=np.float64) / scale**2
        left = np.arange(width - distance)
        matrix[left, left] += total
        matrix[left + distance, left + distance] += total
        matrix[left, left + distance] -= total
        matrix[left + distance, left] -= total
        right[left + distance] += pull
        right[left] -= pull
    return matrix, right


def _stuck(levels: _Floats) -> _Bools:
    """Return which pixels are stuck at black or white while all around them is not."""
    values = cv2.convertScaleAbs(levels)
    points = cv2.absdiff(values, cv2.medianBlur(values, 5)) > _STEP
    points &= (values == 0) | (values == 255)
    count = int(np.count_nonzero(points))
    nothing = np.zeros_like(points)
    if count == 0 or count > _MAX_STUCK * points.size:
        return nothing
    rows, columns = np.nonzero(points)
    height, alone = _heights(levels, points, rows, columns)
    far = height > _SPREADS
    if _in_groups(points, np.asarray(values, np.uint8)) > _GROUPED + 16 * count / points.size:
        return nothing  # spots with an extent, such as lamps and hot targets, are real
    isolated = np.count_nonzero(far & alone)
    if isolated < max(_SHARP * (np.count_nonzero(far) + 1), _CLEAR * count):
        return nothing
    kept = alone & (height > _SPREADS_OF_MORE)
    nothing[rows[kept], columns[kept]] = True
    return nothing


def _in_groups(points: _Bools, values: npt.NDArray[np.uint8]) -> float:
    """Return the share of points beside another of the same value.

    By chance that is about 8 times their density.
    """
    kernel = np.ones((3, 3), np.float32)
    grouped = count = 0
    for value in (0, 255):
        of_value = (points & (values == value)).astype(np.float32)
        around = cv2.filter2D(of_value, -1, kernel, borderType=cv2.BORDER_CONSTANT)
        grouped += int(np.count_nonzero(of_value * (around > 1.5)))
        count += int(of_value.sum())
    return grouped / max(count, 1)


def _heights(
    levels: _Floats, points: _Bools, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]
) -> tuple[_Floats, _Bools]:
    """Return how far points are from what surrounds them, and whether they stand alone.

    The distance is in local standard deviations, and 0 within `_STEP` gray levels. A point stands
    alone if its direct neighbors are normal and enough of the others are not points.
    """
    around = _around(levels, points, rows, columns)
    normal = np.isfinite(around)
    known = np.count_nonzero(normal, axis=1) >= _MIN_KNOWN
    around[~known] = levels[rows, columns][~known, None]
    center = np.nanmedian(around, axis=1)
    spread = 1.4826 * np.nanmedian(np.abs(around - center[:, None]), axis=1)
    height = levels[rows, columns] - center
    direct = normal[:, _DIRECT]
    excess = np.where(direct, around[:, _DIRECT] - center[:, None], 0).sum(1)
    share = excess / np.maximum(direct.sum(1), 1) / np.where(height == 0, 1, height)
    neighbors = 8 - np.count_nonzero(normal[:, _NEAR], axis=1)
    size = np.abs(height)
    distance = np.where(size > _STEP, size / np.maximum(spread, np.float32(1)), 0)
    return distance, known & (share < _SOFT) & (neighbors <= _MAX_NEIGHBORS)


def _around(
    plane: _Floats, points: _Bools, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]
) -> _Floats:
    """Return the 5 x 5 pixels around each point [P, 25], points themselves as NaN."""
    down, right = np.divmod(np.arange(25), 5)
    y = _reflected(rows[:, None] + (down - 2), plane.shape[0])
    x = _reflected(columns[:, None] + (right - 2), plane.shape[1])
    return np.where(points[y, x], np.float32(np.nan), plane[y, x])


def _reflected(index: npt.NDArray[np.intp], size: int) -> npt.NDArray[np.intp]:
    """Reflect indices at the first and last pixel."""
    return (size - 1) - np.abs((size - 1) - np.abs(index))


def _filled(plane: _Floats, stuck: _Bools) -> _Floats:
    """Replace the stuck pixels by the median of the neighbors that are not."""
    rows, columns = np.nonzero(stuck)
    around = _around(plane, stuck, rows, columns)
    filled = plane.copy()
    # `_heights` leaves at least four of the eight neighbors.
    filled[rows, columns] = np.nanmedian(around[:, _NEAR], axis=1)
    return filled
