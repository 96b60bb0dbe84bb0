"""Where each source counts: salience of the base, conflict of the sources, featureless sky.

All maps are planes in [0, 1] that belong to a level of the sources' Gaussian pyramids and are
smooth, so they are computed where the pyramid is small enough and carried to the other levels.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from .pyramid import down, smooth

CORRELATION_FLOOR = 0.01
"""contrast in [0, 1] below which sources count as flat, so that noise is not in conflict"""
CONFLICT_SLOPE = 1.5
"""sources of local correlation −1/1.5 and below are in full conflict"""
GUIDE_EPS = 0.01
CENTER = 0.5
"""subtracted from planes whose variance is a difference of squares, to lose fewer digits"""
SKY_LUMA, SKY_SLOPE, SKY_STD = 0.65, 20.0, 0.015
COLD_LUMA = 0.2
"""brightest infrared of a cold sky"""
COLD_SKY = 0.6
"""share of the way that the pick turns to the visible in front of a cold sky"""
_TINY = 1e-8
_LEAST_EXPONENT = -50.0
"""e to this power is negligible, yet still a normal float32: subnormal ones slow a CPU down"""


def _mean(x: Tensor) -> Tensor:
    """Smooth a plane [H, W] by a Gaussian of variance 2."""
    return smooth(smooth(x))


def product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply planes; on a CPU in one thread, since starting another takes as long."""
    if a.device.type == "cpu" and not (a.requires_grad or b.requires_grad):
        return torch.from_numpy(np.multiply(a.numpy(), b.numpy()))
    return a * b


def salience(x: Tensor) -> Tensor:
    """Measure how much each pixel's gray differs from all others: [H, W] in [0, 1] to the same.

    S(a) = Σ_b hist(b) |a − b|, scaled to 0..1 over the grays that occur (Zhai and Shah 2006). It
    counts whole grays, so that its derivative is 0.
    """
    x = x.detach()
    if x.device.type == "cpu":  # NumPy and OpenCV are several times as fast
        index = np.clip(np.rint(x.numpy() * 255), 0, 255).astype(np.uint8)
        counts = torch.from_numpy(np.bincount(index.ravel(), minlength=256))
        return torch.from_numpy(cv2.LUT(index, _of_grays(counts).numpy())).to(x.dtype)
    index = (x * 255).round_().clamp_(0, 255)
    places = index.long().flatten()
    counts = torch.zeros(256, dtype=torch.long, device=x.device)
    counts.scatter_add_(0, places, torch.ones_like(places))
    return _of_grays(counts)[places].view_as(x).to(x.dtype)


def _of_grays(counts: Tensor) -> Tensor:
    """Compute the salience [256] of each gray from their counts [256]; the sums are exact."""
    grays = torch.arange(256, device=counts.device)
    below, weight = counts.cumsum(0), (counts * grays).cumsum(0)  # of a gray and all below it
    sums = (2 * below - below[-1]) * grays + (weight[-1] - 2 * weight)
    present = counts > 0
    low = sums.masked_fill(~present, torch.iinfo(sums.dtype).max).amin()
    high = sums.masked_fill(~present, 0).amax()
    return (sums - low).float() / (high - low).clamp_(min=1)


def base_weight(i: Tensor, v: Tensor, salient: float, bright: float, slope: float) -> Tensor:
    """Weigh the infrared in the base: smooth within objects, planes [H, W] to the same.

    ½ + salient · (S_i − S_v)/2 + bright · (sigmoid(slope · (i − v)) − ½), through a guided filter
    whose guide is the mean of the sources (He et al. 2010).
    """
    w = (salience(i) - salience(v)).mul_(salient / 2).add_(0.5)
    w.add_(torch.sigmoid((i - v) * slope) - 0.5, alpha=bright)
    return _guided((i + v) / 2, w).clamp_(0, 1)


def _guided(guide: Tensor, x: Tensor) -> Tensor:
    """Fit x as a linear function of the guide in windows of about five pixels' deviation 1.4."""
    m_guide, m_x = _mean(guide), _mean(x)
    slope = (_mean(guide * x) - m_guide * m_x) / (_mean(guide * guide) - m_guide**2 + GUIDE_EPS)
    return _mean(slope) * guide + _mean(m_x - slope * m_guide)


def conflict(i: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Find where the sources contradict each other, and which of them says more there.

    i, v: planes of level 1 [H, W] in [0, 1]. With local statistics of σ = 6 pixels of the sources:
    C = clip(−1.5 · correlation, 0, 1), and the pick of the infrared, less in front of a cold sky:
    sigmoid(12 (f − ½)) · (1 − ``COLD_SKY`` · ``cold_sky``) with its
    share f of Σ C · variance within σ = 12 pixels: what varies outside of the conflict, such as a
    skull beside a cortex, has no say.

    Returns:
        C at level 2 and the pick at level 3.
    """

    def local(plane: Tensor) -> Tensor:
        return smooth(smooth(down(plane)))  # 4 + 2 · 16 pixels² of the sources

    i, v = i - CENTER, v - CENTER
    m_i, m_v = local(i), local(v)
    var_i, var_v = (local(product(a, a)).sub_(m * m).clamp_(min=0) for a, m in ((i, m_i), (v, m_v)))
    over = torch.rsqrt((var_i + CORRELATION_FLOOR**2) * (var_v + CORRELATION_FLOOR**2))
    correlation = local(product(i, v)).sub_(m_i * m_v).mul_(over)
    c = correlation.mul_(-CONFLICT_SLOPE).clamp_(0, 1)
    wide_i, wide_v = (smooth(smooth(down(product(c, var)))) for var in (var_i, var_v))
    share = (wide_i + _TINY) / (wide_i + wide_v + 2 * _TINY)
    pick = torch.sigmoid((share - 0.5) * 12)
    return c, pick * (1 - COLD_SKY * cold_sky(*(down(down(plane)) for plane in (i, v))))


def cold_sky(i: Tensor, v: Tensor) -> Tensor:
    """Find where the infrared is cold and the visible bright, as sky is: in [0, 1].

    i, v: planes less ``CENTER``. The trees and roofs before it make the infrared vary more there,
    but of the sky it shows nothing.
    """
    cold = torch.sigmoid((i - (COLD_LUMA - CENTER)) * -SKY_SLOPE)
    return torch.sigmoid((v - (SKY_LUMA - CENTER)) * SKY_SLOPE) * cold


def sky(v: Tensor, v_squared: Tensor) -> Tensor:
    """Find what is bright and featureless in the visible image: sky, walls, glare; in [0, 1].

    v, v_squared: the visible image less ``CENTER`` and its square at level 1 [H, W]; mean and
    standard deviation are over σ = 3 pixels of the source.
    """
    mean, square = smooth(smooth(v)), smooth(smooth(v_squared))
    luma = SKY_LUMA - CENTER
    variance = square.sub_(mean * mean).clamp_(min=0)
    flat = variance.div_(-(SKY_STD**2)).clamp_(min=_LEAST_EXPONENT).exp_()
    return torch.sigmoid((mean - luma) * SKY_SLOPE) * flat
