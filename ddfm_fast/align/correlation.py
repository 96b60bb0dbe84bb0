"""The shift between two pictures, by correlation of their edges' directions.

A gradient g = gx + i·gy gives the field g²/|g|² · |g|/(|g| + m), m the median of |g|. Squared, an
edge has one direction whichever side is brighter, since sensors disagree on that; the weight
removes flat parts. The fields of both pictures, tapered to their borders, are correlated by FFT,
their spectrum half whitened (|·|^½), and the peak is fitted by parabolas. The confidence is how far
it stands out, in standard deviations of the correlation above the next peak; it is lower if the
same place does not stand out of a correlation that is whitened further (|·|^⅕). After "orientation
correlation" (Fitch et al., BMVC 2002), with the angle doubled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from torch import Tensor

from ..images.color import luma
from ..images.planes import to_planes
from ..images.ranges import is_signed, ranges_of

SIDE = 320
"""pixels of the longer side to which pictures are reduced before they are compared"""
REACH = 40
"""largest shift, in pixels of the full size"""
SURE = 3.6
"""confidence from which a shift is believed; see bench/results/align-*.md"""
_POWER, _OTHER, _CONFIRMS, _AT = 0.5, 0.8, 2.0, 2
"""power of the spectrum that is divided out; another power, in whose correlation the place must
stand out this far to be sure, and within this many pixels: a false shift from a few large edges
does not (tuned on one half of the pairs of tests/tools/align_table.py)"""
_SIGMA, _NEAR = 1.5, 4
"""blur before gradients; pixels around a peak that are part of it"""
_FINE, _SMALL = 0.5, 0.3
"""least share of that blur, and of the taper, where a picture is smaller than ``SIDE``"""


class Shift(NamedTuple):
    """How far the infrared picture is shifted from the visible one."""

    x: float
    """pixels to the right"""
    y: float
    """pixels down"""
    confidence: float
    """from 0 on; at ``SURE`` and above the shift is reliable"""

    @property
    def sure(self) -> bool:
        """Whether it is reliable."""
        return self.confidence >= SURE


def check(ir: Any, vis: Any, *, value_range: Any = None, reach: float = REACH) -> Shift:
    """Find how many pixels one picture is shifted from the other.

    Args:
        ir: The infrared picture, in any container that ``fuse`` takes.
        vis: The visible one, of the same size.
        value_range: As for ``fuse``.
        reach: The largest shift to look for, in pixels, in each direction.

    Returns:
        The shift. For aligned pictures it is (0, 0) to a pixel or so; for unlike ones it is
        arbitrary, with a confidence near 0.

    Raises:
        ValueError: The sizes differ, there is more than one picture, or as in ``fuse``.
        TypeError: As in ``fuse``.
    """
    a, b = grays(ir, vis, value_range)
    if a.shape != b.shape:
        raise ValueError(
            f"ir is {_size(a)} and vis {_size(b)}; expected equal sizes: align them first "
            "with ddfm_fast.align.estimate and apply"
        )
    return shift_between(a, b, reach)


def shift_between(a: np.ndarray, b: np.ndarray, reach: float) -> Shift:
    """Find the shift between planes [H, W] float32 of one size."""
    scale = min(1.0, SIDE / max(a.shape))
    if scale < 1:
        a, b = (
            cv2.resize(p, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for p in (a, b)
        )
    small = min(1.0, max(_SMALL, max(a.shape) / SIDE))  # a small picture has no edges to waste
    found = peak(directions(a), directions(b), reach * scale + 2, small, confirm=True)
    return Shift(found.x / scale, found.y / scale, found.confidence)


def grays(ir: Any, vis: Any, value_range: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Read a pair as luma planes [H, W] float32 in [0, 1]; ranges and errors as of ``fuse``."""
    ranges = ranges_of(ir, vis, value_range, told=False)
    return _gray(ir, "ir", ranges["ir"]), _gray(vis, "vis", ranges["vis"])


def _gray(image: Any, name: str, value_range: Any) -> np.ndarray:
    if is_signed(image) and not isinstance(image, Tensor):
        image = np.asarray(image, np.float64)
    elif is_signed(image):
        image = image.double()
    planes, _ = to_planes(image, name, value_range=value_range)
    if len(planes) != 1:
        raise ValueError(f"{name} holds {len(planes)} pictures, expected one")
    return luma(planes)[0, 0].cpu().numpy()


def blurred(plane: np.ndarray) -> np.ndarray:
    """Blur a plane before its gradients are taken; a small plane less."""
    sigma = _SIGMA * min(1.0, max(_FINE, max(plane.shape) / SIDE))
    return cv2.GaussianBlur(plane, (0, 0), sigma)


def directions(plane: np.ndarray) -> np.ndarray:
    """Compute the field of edges' doubled directions, complex64 [H, W]."""
    plane = blurred(plane)
    z = cv2.Scharr(plane, cv2.CV_32F, 1, 0) + 1j * cv2.Scharr(plane, cv2.CV_32F, 0, 1)
    size = np.abs(z)
    median = median_of(size[::4, ::4]) + 1e-6
    return (z * z / (size * (size + median) + 1e-12)).astype(np.complex64)


def median_of(values: np.ndarray) -> Any:
    """Return what ``np.median`` does, a scalar; that loads NumPy's masked arrays, in 20 ms."""
    low, high = (values.size - 1) // 2, values.size // 2
    ordered = np.partition(values, (low, high, values.size - 1), axis=None)
    return ordered[-1] if np.isnan(ordered[-1]) else ordered[low : high + 1].mean()


def peak(
    a: np.ndarray, b: np.ndarray, reach: float, taper: float = 1.0, *, confirm: bool = False
) -> Shift:
    """Find the shift between two fields of one size.

    Args:
        a: [H, W] complex64.
        b: Likewise.
        reach: Largest shift in each direction, in pixels.
        taper: Share of a side over which both fade.
        confirm: Let the further whitened correlation lower the confidence.
    """
    height, width = a.shape
    fade = np.outer(_taper(height, taper), _taper(width, taper)).astype(np.float32)
    spectrum = np.fft.fft2(a * fade) * np.conj(np.fft.fft2(b * fade))
    r = max(1, int(min(reach, height // 4, width // 4)))
    size = np.abs(spectrum)
    c = _middle(spectrum / (size**_POWER + 1e-9), r)
    y, x = (int(n) for n in np.unravel_index(np.argmax(c), c.shape))
    confidence = _standing_out(c, y, x, 0)
    if confirm and confidence > 0:
        other = _standing_out(_middle(spectrum / (size**_OTHER + 1e-9), r), y, x, _AT)
        confidence = max(0.0, min(confidence, SURE * other / _CONFIRMS))
    dx = _between(c[y, x - 1], c[y, x], c[y, x + 1]) if 0 < x < 2 * r else 0.0
    dy = _between(c[y - 1, x], c[y, x], c[y + 1, x]) if 0 < y < 2 * r else 0.0
    return Shift(float(x - r + dx), float(y - r + dy), confidence)


def _middle(spectrum: np.ndarray, r: int) -> np.ndarray:
    """Return the correlation of this spectrum, for shifts of up to r."""
    y, x = (n // 2 for n in spectrum.shape)
    return np.fft.fftshift(np.fft.ifft2(spectrum).real)[y - r : y + r + 1, x - r : x + r + 1]


def _standing_out(c: np.ndarray, y: int, x: int, about: int) -> float:
    """Return how many standard deviations the best near a place (``about``) is above all others."""
    others = c.copy()
    others[max(0, y - _NEAR) : y + _NEAR + 1, max(0, x - _NEAR) : x + _NEAR + 1] = -np.inf
    here = c[max(0, y - about) : y + about + 1, max(0, x - about) : x + about + 1].max()
    spread, next_best = float(c.std()), float(others.max())
    return (float(here) - next_best) / spread if spread > 0 and np.isfinite(next_best) else 0.0


def _taper(length: int, share: float) -> np.ndarray:
    """Make Tukey's window: 1, with a cosine at both ends."""
    at = np.minimum(np.arange(length), np.arange(length)[::-1]) / max(
        1e-9, share * (length - 1) / 2
    )
    return 0.5 - 0.5 * np.cos(np.pi * np.minimum(at, 1.0))


def _between(before: float, at: float, after: float) -> float:
    """Return where the parabola through three values has its top."""
    bend = before - 2 * at + after
    return 0.0 if bend == 0 else float((before - after) / (2 * bend))


def _size(plane: np.ndarray) -> str:
    return f"{plane.shape[0]}x{plane.shape[1]}"
