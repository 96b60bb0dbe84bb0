"""How noisy a luma plane is, and whether its noise grows with brightness.

The plane is filtered with the Laplacian difference [[1, -2, 1], [-2, 4, -2], [1, -2, 1]], which
cancels planes and straight edges and multiplies the standard deviation of white noise by 6
(Immerkær 1996). Three questions are answered one after the other:

1. Is there noise at all? The quiet quarter of the 8 x 8 blocks must be above `THRESHOLD`, and the
   noise must be white: averaging 2 x 2 pixels halves white noise and leaves texture as it is.
2. How much? The median magnitude of the Laplacian, over the pixels whose local mean is far enough
   from black and white that noise is not clipped there.
3. Does it grow with brightness? A line is fitted to the variance of the quiet quarter of the
   blocks of each brightness. `stabilize` then makes such noise uniform, and `destabilize` goes
   back (generalized Anscombe transform).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

THRESHOLD = 3.0
"""gray levels of 255 up to which a plane counts as clean: fine texture says as much as noise"""

_Floats = npt.NDArray[np.float32]

_GAIN = 6.0
"""standard deviation of the Laplacian of white noise of standard deviation 1"""
_MEDIAN = 0.6745
"""median magnitude of a standard normal variable"""
_MEAN = math.sqrt(2 / math.pi)
"""mean magnitude of a standard normal variable"""
_QUIET = 0.25
"""share of the blocks of a kind that may be flat enough to show noise alone"""
_QUIET_OF_WHITE = 0.888
"""that quantile of the levels of 8 x 8 blocks, where there is nothing but noise of level 1"""
_BLOCK = 8
_LEAST_SIDE = 48
"""pixels of height and width below which nothing counts as noise"""
_CLIPPED = 0.58
"""standard deviation that noise of level 1 keeps on black"""
_MIN_BLOCKS = 64
_SLACK = 1.02
"""how far the quiet blocks, which are too few to be exact, must be below the median to count"""
_WHITE = 1.0
"""most that halving the size may leave of the quiet level: noise .5, texture and edges 1.1 to 3"""
_DITHER = 0.2
"""least that halving the size may leave: patterns of single pixels cancel out"""
_SAMPLES = 32768
"""pixels that a median is taken over: its error is then under 1 %"""
_BIN = 8
"""gray levels in a bin of brightness"""
_BIN_BLOCKS = 16
_MIN_BINS = 5
_REACH = 1.25
"""noise levels between a bin and black or white: clipping then takes a sixth of the variance"""
_MIN_GROWTH = 2.0
"""least ratio of the variances at both ends of the line"""
_MAX_UNEXPLAINED = 0.15
"""most of the spread of the variances that the line may leave"""
_OUTLIER = 0.15
"""relative deviation from the line beyond which a bin counts less (Huber)"""


class NoiseLevel(NamedTuple):
    """Noise of a plane, in gray levels of 255.

    sigma: standard deviation where noise is not clipped, 0.0 for a clean plane. It can be above 0
        where ``plain`` is below `THRESHOLD`: black ground hides noise from the latter.
    plain: median of the Laplacian over all pixels, as a standard deviation; texture included.
    gain: variance per gray level of the mean; 0.0 where noise does not clearly grow with it.
    offset: variance at black, so that variance = gain * mean + offset. 0.0 for a clean plane.
    """

    sigma: float
    plain: float
    gain: float
    offset: float


CLEAN = NoiseLevel(0.0, 0.0, 0.0, 0.0)


class Stabilized(NamedTuple):
    """A plane whose noise is equally strong everywhere, and what `destabilize` needs.

    plane: float32 in [0, 1], the shape of the original.
    sigma: standard deviation of its noise, in gray levels of 255 of this plane.
    gain, offset: what it was made with.
    """

    plane: Tensor
    sigma: float
    gain: float
    offset: float


class _Blocks(NamedTuple):
    """Mean and noise level of each block, flattened, in gray levels."""

    mean: _Floats
    level: _Floats

    def inside(self, level: float) -> _Blocks:
        """Return the blocks at least ``level`` away from black and white.

        Once the level, not twice: in low light hardly anything else is left, and noise that is
        clipped a little is still noise.
        """
        kept = _inside(self.mean, level, 1)
        return _Blocks(self.mean[kept], self.level[kept])

    def black(self, level: float) -> _Blocks:
        """Return the blocks nearer to black than ``level``."""
        kept = self.mean < level + 1
        return _Blocks(self.mean[kept], self.level[kept])

    def quiet(self) -> float:
        """Return the level of the quiet blocks, calibrated on white noise; 0.0 without blocks."""
        if self.level.size == 0:
            return 0.0
        return _ranked(self.level, _QUIET) / _QUIET_OF_WHITE


def noise_level(luma: Tensor) -> list[NoiseLevel]:
    """Estimate the noise of each luma plane.

    Args:
        luma: [N, 1, H, W] in [0, 1], H and W at least 16. Each image is judged on its own.

    Returns:
        One `NoiseLevel` per image.

    Raises:
        ValueError: luma has another shape.
    """
    if luma.ndim != 4 or luma.shape[1] != 1 or min(luma.shape[2:]) < 16:
        raise ValueError(
            f"luma must be [N, 1, H, W] with H and W at least 16; it is {list(luma.shape)}"
        )
    planes = luma.detach().to("cpu", torch.float32)[:, 0].numpy()
    return [_noise_level(np.multiply(plane, np.float32(255))) for plane in planes]


Estimator = Callable[[Tensor], NoiseLevel]
"""the noise of one plane [1, 1, H, W] in [0, 1]: ``estimate``, or a video's running one"""


def estimate(plane: Tensor) -> NoiseLevel:
    """Estimate the noise of one plane [1, 1, H, W] in [0, 1]."""
    return noise_level(plane)[0]


def stabilize(luma: Tensor, gain: float, offset: float) -> Stabilized:
    """Make noise of variance gain * mean + offset equally strong everywhere.

    Generalized Anscombe transform (Murtagh et al. 1995), then scaled so that black stays 0 and
    white stays 1. It is the identity where gain is 0.

    Args:
        luma: plane of any shape in [0, 1].
        gain: variance per gray level of 255, at least 0.
        offset: variance at black in gray levels of 255, at least 0.

    Returns:
        The plane, the level of its noise, and what `destabilize` needs.
    """
    if gain <= 0:
        return Stabilized(luma, math.sqrt(max(offset, 0.0)), 0.0, offset)
    black, white = _stabilized_ends(gain, offset)
    roots = (luma * (255 / gain) + (3 / 8 + offset / gain**2)).clamp_min(0).sqrt().mul(2)
    return Stabilized(roots.sub(black).div(white - black), 255 / (white - black), gain, offset)


def destabilize(stabilized: Stabilized, *, unbiased: bool = True) -> Tensor:
    """Turn a stabilized and denoised plane back into luma.

    A denoiser finds the mean of the square roots, which is below the root of the mean. The
    closed-form inverse of Mäkitalo and Foi (2011, 2013) makes up for that: it adds about a quarter
    of ``gain`` gray levels. A plane that was not noisy comes back exactly by ``unbiased=False``.

    Args:
        stabilized: what `stabilize` returned, with its plane denoised.
        unbiased: choose the inverse for the mean of noisy values, not for the values themselves.

    Returns:
        The luma plane in [0, 1].
    """
    plane, _, gain, offset = stabilized
    if gain <= 0:
        return plane
    black, white = _stabilized_ends(gain, offset)
    # Below black the powers of 1/d of the unbiased inverse grow without bound.
    d = plane.mul(white - black).add(black).clamp_min(black)
    if unbiased:
        root = math.sqrt(3 / 2)
        series = (root * 5 / 8 / d - 11 / 8) / d + root / 4
        photons = d.square() / 4 + series / d - 1 / 8
    else:
        photons = d.square() / 4 - 3 / 8
    return ((photons - offset / gain**2) * (gain / 255)).clamp(0, 1)


def _stabilized_ends(gain: float, offset: float) -> tuple[float, float]:
    """Return what black and white become, in standard deviations of the noise."""
    shift = 3 / 8 + offset / gain**2
    return 2 * math.sqrt(shift), 2 * math.sqrt(255 / gain + shift)


def _noise_level(plane: _Floats) -> NoiseLevel:
    """Estimate the noise of one plane [H, W] in gray levels."""
    magnitude = _laplacian(plane)
    blocks = _blocks(plane, magnitude)
    plain, sigma = _medians(plane, magnitude, _varied(magnitude))
    if min(plane.shape) < _LEAST_SIDE:  # texture of so few pixels cannot be told from noise
        return NoiseLevel(0.0, plain, 0.0, 0.0)
    if not _is_noisy(plane, blocks, sigma):
        return NoiseLevel(0.0, plain, 0.0, 0.0)
    line = _fit_brightness(blocks)
    if line is not None:
        return NoiseLevel(sigma, plain, *line)
    unclipped = blocks.inside(2 * sigma)
    if unclipped.level.size >= _MIN_BLOCKS:
        # Where most of the picture is texture, the median counts it as noise.
        sigma = min(sigma, _SLACK * unclipped.quiet())
    return NoiseLevel(sigma, plain, 0.0, sigma**2)


def _laplacian(plane: _Floats) -> _Floats:
    """Return the magnitude of the Laplacian difference [H - 2, W - 2], as a noise level."""
    taps = np.array([1, -2, 1], np.float32)
    filtered = cv2.sepFilter2D(plane, cv2.CV_32F, taps / np.float32(_GAIN), taps)
    return np.abs(filtered, out=filtered)[1:-1, 1:-1]


def _varied(magnitude: _Floats) -> npt.NDArray[np.bool_] | None:
    """Say where a picture varies at all; None for everywhere.

    A border, a caption's ground or a blank panel is drawn, not seen by a sensor: it has no noise.
    """
    height, width = magnitude.shape
    size = max(width // _BLOCK, 1), max(height // _BLOCK, 1)
    level = _floats(cv2.resize(magnitude, size, interpolation=cv2.INTER_AREA))
    blank = (level == 0).astype(np.uint8)
    if not blank.any():
        return None
    return cv2.resize(blank, (width, height), interpolation=cv2.INTER_NEAREST) == 0


def _medians(
    plane: _Floats, magnitude: _Floats, varied: npt.NDArray[np.bool_] | None
) -> tuple[float, float]:
    """Estimate the level over all pixels, and over those where noise is not clipped."""
    # A mask needs no fractions of a gray level, and bytes are averaged in a quarter of the time.
    local = cv2.blur(cv2.convertScaleAbs(plane), (7, 7))[1:-1, 1:-1]
    step = magnitude.size // _SAMPLES | 1  # odd: even widths then give all columns
    samples, means = magnitude.ravel()[::step], local.ravel()[::step]
    plain = level = _ranked(samples, 0.5) / _MEDIAN
    if varied is not None and np.count_nonzero(shown := varied.ravel()[::step]) >= 64:
        samples, means = samples[shown], means[shown]
        level = _ranked(samples, 0.5) / _MEDIAN
    for _ in range(3):
        kept = samples[_inside(means, level, 2)]
        if kept.size < max(64, samples.size // 100):
            break
        level = _ranked(kept, 0.5) / _MEDIAN
    return plain, level


def _ranked(values: _Floats, share: float) -> float:
    """Return the value that this share of the values is below: np.quantile takes far longer."""
    rank = min(int(values.size * share), values.size - 1)
    return float(np.partition(values, rank)[rank])


def _floats(array: Any) -> _Floats:
    """Name the type that OpenCV's stubs do not know; copies nothing."""
    return np.asarray(array, np.float32)


def _inside(mean: npt.NDArray[Any], level: float, reach: float) -> npt.NDArray[np.bool_]:
    """Say where noise of this level stays between black and white."""
    return (mean >= reach * level + 1) & (mean <= 254 - reach * level)


def _blocks(plane: _Floats, magnitude: _Floats) -> _Blocks:
    """Average the plane and its Laplacian over blocks of 8 x 8 pixels."""
    height, width = magnitude.shape
    size = max(width // _BLOCK, 1), max(height // _BLOCK, 1)
    # Whole blocks only: a resize by a whole number takes a quarter of the time.
    height, width = min(size[1] * _BLOCK, height), min(size[0] * _BLOCK, width)
    inner = plane[1 : height + 1, 1 : width + 1]
    mean = cv2.resize(inner, size, interpolation=cv2.INTER_AREA)
    level = cv2.resize(magnitude[:height, :width], size, interpolation=cv2.INTER_AREA)
    means, levels = _floats(mean).ravel(), _floats(level).ravel() / np.float32(_MEAN)
    varied = levels > 0
    return _Blocks(means[varied], levels[varied])


def _is_noisy(plane: _Floats, blocks: _Blocks, sigma: float) -> bool:
    """Decide whether blocks show more than `THRESHOLD` where they are quiet, and white noise.

    The black ground of a picture is judged apart: texture elsewhere does not hide its noise.
    """
    grounds = [
        (_Blocks.inside, THRESHOLD, blocks.level.size // 100),
        (_Blocks.black, THRESHOLD * _CLIPPED, blocks.level.size // 20),
    ]
    loud = []
    for ground, threshold, least in grounds:
        found = ground(blocks, sigma)
        if found.level.size > least and found.quiet() > threshold:
            loud.append((ground, found.quiet()))
    if not loud:
        return False
    height, width = plane.shape
    even = plane[: height // 2 * 2, : width // 2 * 2]
    half = _floats(cv2.resize(even, (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    halved = _blocks(half, _laplacian(half))
    if halved.level.size == 0:  # a pattern of single pixels that cancels out
        return False
    for ground, quiet in loud:
        found = ground(halved, sigma)
        # In low light the bright spots may be too small for blocks twice as wide: noise, then.
        if found.level.size == 0 or _DITHER * quiet < found.quiet() <= _WHITE * quiet:
            return True
    return False


def _fit_brightness(blocks: _Blocks) -> tuple[float, float] | None:
    """Fit variance = gain * mean + offset; None if it explains no clear growth."""
    means, variances, counts = _variance_by_brightness(blocks)
    if means.size < _MIN_BINS:
        return None
    gain, offset = _fit_line(means, variances, counts)
    line = gain * means + offset
    if gain <= 0 or line[-1] <= _MIN_GROWTH * line[0]:
        return None
    weights = counts / line**2
    constant = (weights @ variances) / weights.sum()
    left = float(weights @ (variances - line) ** 2)
    if left > _MAX_UNEXPLAINED * float(weights @ (variances - constant) ** 2):
        return None
    return gain, offset


def _variance_by_brightness(blocks: _Blocks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, noise variance and number of blocks of each bin of brightness, dark first."""
    order = np.argsort(blocks.mean)
    mean, level = blocks.mean[order], blocks.level[order]
    edges = np.searchsorted(mean, np.arange(0, 256 + _BIN, _BIN))
    found = []
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        if stop - start < _BIN_BLOCKS:
            continue
        one = _Blocks(mean[start:stop], level[start:stop])
        center, quiet = float(mean[(start + stop) // 2]), one.quiet()
        # Clipping takes variance from the darkest and brightest bins, which would look like gain.
        if _REACH * quiet + 1 <= center <= 254 - _REACH * quiet:
            found.append((center, quiet**2, float(stop - start)))
    means, variances, counts = np.array(found, np.float64).reshape(-1, 3).T
    return means, variances, counts


def _fit_line(means: np.ndarray, variances: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Fit a line with no negative coefficient, by the relative and robust error of each bin."""
    line = np.full_like(variances, np.median(variances))
    gain = offset = 0.0
    for _ in range(10):
        line = np.maximum(line, 1e-3)
        deviation = np.abs(variances - line) / line
        weights = counts / line**2 / np.maximum(deviation / _OUTLIER, 1)
        weights /= weights.sum()
        center, level = float(weights @ means), float(weights @ variances)
        spread = float(weights @ (means - center) ** 2)
        gain = float(weights @ ((means - center) * (variances - level))) / max(spread, 1e-12)
        gain = min(max(gain, 0.0), level / center)
        offset = max(level - gain * center, 0.0)
        line = gain * means + offset
    return gain, offset
