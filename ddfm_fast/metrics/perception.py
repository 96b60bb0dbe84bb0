"""Two measures that model the eye, both on levels stretched to 0..255: Q_CB and Q_CV.

Their filters are given in cycles per picture, as in the public code, so that a picture is seen
whole, from one distance, whatever its size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .conventions import Convention
from .measures import filter_valid, share, sobel, stretched

_WINDOW = 31
_BLOCK = 16
_SALIENCE = 5


def contrast_preservation(planes: Tensor, _convention: Convention) -> tuple[Tensor, Tensor]:
    """Q_CB of the pair [N] and of each source [N, 2]: Chen and Blum 2009, equations 5 to 13.

    The sources' masked contrasts kept in the fused picture, weighted by the squared contrast; 1
    where a source and the fused picture both have none.
    """
    fine = torch.exp(-(_cycles(planes, 15) ** 2) / 15.3870**2)
    response = fine - 0.7622 * torch.exp(-(_cycles(planes, 15) ** 2) / 1.3456**2)
    seen = F.pad(_filtered(stretched(planes), response), (_WINDOW // 2,) * 4)
    near, far = (filter_valid(seen, _WINDOW, sigma).mul_(_mass(sigma)) for sigma in (2.0, 4.0))
    contrast = torch.where(far == 0, 0.0, near / far - 1).abs_()
    masked = contrast**3 / (contrast**2 + 1e-4)
    fused, sources = masked[:, :1], masked[:, 1:]
    larger = torch.maximum(fused, sources)
    kept = torch.where(larger > 0, torch.minimum(fused, sources) / larger, 1.0)
    power = sources**2
    total = power.sum(1, keepdim=True)
    weight = torch.where(total > 0, power / total, 0.5)
    parts, weights = ((p.sum((-2, -1))) for p in (weight * kept, weight))
    return share(parts.sum(1), weights.sum(1)), share(parts, weights)


def regional_error(planes: Tensor, _convention: Convention) -> tuple[Tensor, Tensor]:
    """Q_CV of the pair [N] and of each source [N, 2]: Chen and Varshney 2007; 0 is best.

    Squared differences that the eye sees (Mannos and Sakrison 1974), by blocks of 16 × 16, which
    weigh by the fifth powers of the source's gradients; 0 for a source without any.
    """
    levels = stretched(planes)
    strength, _ = sobel(F.pad(levels[:, 1:], (1, 1, 1, 1)))
    salience = _blocks(strength**_SALIENCE)
    radius = 0.144 * _cycles(planes, 4)
    response = 2.6 * (0.0192 + radius) * torch.exp(-(radius**1.1))
    error = _blocks(_filtered(levels[:, 1:] - levels[:, :1], response) ** 2) / _BLOCK**2
    parts, weights = (p.sum((-2, -1)) for p in (salience * error, salience))
    return _mean(parts.sum(1), weights.sum(1)), _mean(parts, weights)


def _cycles(planes: Tensor, per: int) -> Tensor:
    """Return cycles per picture of each coefficient of an FFT, over ``per``: [H, W]."""
    height, width = planes.shape[-2:]
    v, u = (
        torch.fft.fftfreq(n, dtype=torch.float64, device=planes.device) * (n / per)
        for n in (height, width)
    )
    return torch.hypot(v[:, None], u[None])


def _filtered(planes: Tensor, response: Tensor) -> Tensor:
    """Filter plane by plane, so that a picture gets the same result in a batch as alone."""
    found = [torch.fft.ifft2(torch.fft.fft2(p) * response).real for p in planes.flatten(0, 1)]
    return torch.stack(found).view_as(planes)


def _mass(sigma: float) -> float:
    """Return the sum of the public code's Gaussian, cut off at its window and not normalized."""
    half = _WINDOW // 2
    line = sum(math.exp(-(x**2) / (2 * sigma**2)) for x in range(-half, half + 1))
    return line**2 / (2 * math.pi * sigma**2)


def _blocks(planes: Tensor) -> Tensor:
    """Sum over blocks of 16 × 16, with zeros beyond the lower and right edges."""
    height, width = planes.shape[-2:]
    planes = F.pad(planes, (0, -width % _BLOCK, 0, -height % _BLOCK))
    return planes.unfold(-2, _BLOCK, _BLOCK).unfold(-2, _BLOCK, _BLOCK).sum((-2, -1))


def _mean(parts: Tensor, weights: Tensor) -> Tensor:
    return torch.where(weights > 0, parts / weights.clamp(min=1e-300), 0.0)
