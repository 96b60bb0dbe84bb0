"""Feature mutual information, FMI: how much 3 × 3 windows of two pictures tell about each other.

Haghighat, Aghagolzadeh and Seyedarabi 2011, in the form of "Fast-FMI" (Haghighat and Razian 2014).
Nine values of a window, stretched to 0..1 and divided by their sum, are taken as a distribution
over the nine places, column by column; the joint one of two pictures is between their product and
the Fréchet bound on the side of their correlation c, so that the correlation of the places is c.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .conventions import Convention
from .measures import sum_over_strips

_SIDE = 3
_PLACES = _SIDE**2


def pixel_information(planes: Tensor, _convention: Convention) -> Tensor:
    return _information(planes)


def gradient_information(planes: Tensor, _convention: Convention) -> Tensor:
    """Use only the horizontal derivative, as the public code does: central, one-sided at edges."""
    return _information(torch.gradient(planes, dim=-1)[0])


def _information(features: Tensor) -> Tensor:
    height, width = features.shape[-2:]
    total = sum_over_strips(_terms, features, _SIDE)
    return total / ((height - _SIDE + 1) * (width - _SIDE + 1))


def _terms(features: Tensor) -> Tensor:
    """Sum over the windows what fused and each source share, [N, 2]."""
    height, width = (n - _SIDE + 1 for n in features.shape[-2:])
    places = [(row, column) for column in range(_SIDE) for row in range(_SIDE)]
    windows = torch.stack([features[..., r : r + height, c : c + width] for r, c in places], 2)
    low, high = windows.amin(2, keepdim=True), windows.amax(2, keepdim=True)
    flat = high == low
    density = torch.where(flat, 1.0, (windows - low) / (high - low))
    density /= density.sum(2, keepdim=True)
    flat_f, flat_s = flat[:, :1, 0], flat[:, 1:, 0]
    same = (windows[:, :1] == windows[:, 1:]).all(2) | (flat_f & flat_s)
    own = -torch.xlogy(density, density).sum(2)
    own = own[:, :1] + own[:, 1:]
    there = own - _joint_entropy(density[:, :1], density[:, 1:], flat_f | flat_s)
    shared = torch.where(own > 0, 2 * there / own, 0.0)
    return torch.where(same, 1.0, shared).sum((-2, -1))


def _joint_entropy(f: Tensor, s: Tensor, flat: Tensor) -> Tensor:
    """Compute the joint entropy of densities [N, 1 and 2, 9, h, w], in nats [N, 2, h, w].

    A flat window correlates with none. Computing row by row of the 9 × 9 places keeps the
    temporaries small.
    """
    reach_f, reach_s = f.cumsum(2), s.cumsum(2)
    correlation = torch.where(flat, 0.0, _correlation(f, s))
    positive = (correlation >= 0)[:, :, None]

    def bound(place: int) -> Tensor:
        """Return the Fréchet bound of the cumulated joint, at a place of f and all of s."""
        of_f = reach_f[:, :, place : place + 1]
        upper, lower = torch.minimum(of_f, reach_s), (of_f + reach_s - 1).clamp_(min=0)
        return torch.where(positive, upper, lower)

    covariance = -reach_f.sum(2) * reach_s.sum(2)
    for place in range(_PLACES):
        covariance += bound(place).sum(2)
    spread = (_variance(f) * _variance(s)).clamp_(min=0).sqrt_()
    usable = (spread > 0) & (covariance != 0)
    weight = torch.where(usable, correlation * spread / covariance, 0.0)[:, :, None]
    entropy = torch.zeros_like(correlation)
    before = torch.zeros_like(s)
    for place in range(_PLACES):
        now = bound(place)
        of_bound = torch.diff(now - before, dim=2, prepend=torch.zeros_like(s[:, :, :1]))
        joint = weight * of_bound + (1 - weight) * f[:, :, place : place + 1] * s
        entropy -= torch.xlogy(joint, joint.abs()).sum(2)
        before = now
    return entropy


def _correlation(f: Tensor, s: Tensor) -> Tensor:
    """Compute Pearson's correlation of the densities as nine pairs of values."""
    f, s = f - 1 / _PLACES, s - 1 / _PLACES
    norm = ((f * f).sum(2) * (s * s).sum(2)).sqrt()
    return torch.where(norm > 0, (f * s).sum(2) / norm, 0.0)


def _variance(density: Tensor) -> Tensor:
    """Compute the variance of the place, 1 to 9, under the density."""
    place = torch.arange(1, _PLACES + 1, dtype=density.dtype, device=density.device)
    place = place.view(-1, 1, 1)
    return (place**2 * density).sum(2) - (place * density).sum(2) ** 2
