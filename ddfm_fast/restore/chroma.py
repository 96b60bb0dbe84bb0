"""Remove colored noise from chroma, which is smooth; luma is left to the prior.

Chroma is fitted as a linear function of a clean luma in windows of 10 to 20 pixels (guided filter,
He et al. 2010), on planes half or a quarter as wide (He and Sun 2015), which averages noise away.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from ..images.color import luma
from .noise_level import Estimator, estimate

_STRONG = 10.0
"""gray levels of noise from which planes are a quarter as wide, not half"""
_WINDOW = 5
"""pixels of the smaller planes"""
_LEAST_VARIANCE = 2e-4
"""of luma in a window, which counts as flat below"""


def chroma_noise(planes: Tensor, estimators: Sequence[Estimator] | None = None) -> float:
    """Estimate the noise of an image's ``chroma_planes`` [2, 1, 1, H, W]: σ in gray levels of 255.

    0 for a clean one. ``estimators``: of Cb and Cr, a video's running ones.
    """
    estimate_blue, estimate_red = estimators or (estimate, estimate)
    return max(estimate_blue(planes[0]).sigma, estimate_red(planes[1]).sigma)


def smooth_chroma(rgb: Tensor, guide: Tensor, sigma: float) -> Tensor:
    """Remove white noise from an image's chroma.

    Args:
        rgb: [1, 3, H, W] in [0, 1].
        guide: A clean luma of the same scene, [1, 1, H, W] in [0, 1].
        sigma: The result of ``chroma_noise``.

    Returns:
        An image [1, 3, H, W] of the smooth chroma, which may leave [0, 1]; its luma is smooth too.
    """
    own = luma(rgb)
    planes = torch.cat([own, rgb[:, :1] - own, rgb[:, 2:] - own], 1)[0].cpu().numpy()
    y = np.ascontiguousarray(guide[0, 0].cpu().numpy())
    height, width = y.shape
    times = 4 if sigma >= _STRONG else 2
    small = max(1, width // times), max(1, height // times)

    def smaller(plane: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.resize(plane, small, interpolation=cv2.INTER_AREA))

    def larger(plane: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR))

    g = smaller(y)
    mean_g = _mean(g)
    variance = _mean(g * g) - mean_g * mean_g + _LEAST_VARIANCE
    fitted = []
    for plane in planes:
        c = smaller(np.ascontiguousarray(plane))
        mean_c = _mean(c)
        slope = (_mean(g * c) - mean_g * mean_c) / variance
        offset = mean_c - slope * mean_g
        fitted.append(larger(_mean(slope)) * y + larger(_mean(offset)))
    own, red, blue = (torch.from_numpy(plane).to(rgb.device) for plane in fitted)
    # 0.299 R + 0.587 G + 0.114 B of a chroma is 0
    green = (red * 0.299 + blue * 0.114) * (-1 / 0.587)
    return own.clamp(0, 1) + torch.stack([red, green, blue])[None]


def _mean(plane: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.blur(plane, (_WINDOW, _WINDOW), borderType=cv2.BORDER_REFLECT))
