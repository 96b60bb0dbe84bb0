"""Stretching a fused luma to the full range."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .planes import check_planes

MARGIN = 0.1
"""share of the sources' range by which "sources" may stretch past it at either end"""
_FLAT = 1e-6


def stretch_minmax(y: Tensor) -> Tensor:
    """Stretch each image of [N, 1, H, W] so that its minimum is 0 and its maximum is 1.

    An image that is flat to 1e-6 has no contrast to stretch and is only clamped to [0, 1].
    """
    return stretch_between(y, *stretch_limits(y, "minmax"))


def stretch_percentile(y: Tensor, share: float = 0.0001) -> Tensor:
    """Stretch each image of [N, 1, H, W] to [0, 1], but for its darkest and brightest share.

    ``share`` of the pixels clip at either end (order statistics, no interpolation): a single hot
    pixel does not decide the contrast. An image that is flat in between is only clamped.
    """
    return stretch_between(y, *stretch_limits(y, "percentile", share))


def stretch_limits(y: Tensor, stretch: str, share: float = 0.0001) -> Tensor:
    """The values that become 0 and 1, [2, N, 1, 1, 1], of images [N, 1, H, W].

    ``stretch``: "minmax" for the extremes, "percentile" for all but ``share`` at either end.
    """
    check_planes(y, "y")
    values = y.flatten(1)
    if stretch == "minmax":
        low, high = values.aminmax(dim=1)
    else:
        rank = int(share * (values.shape[1] - 1))
        low = values.kthvalue(rank + 1, dim=1).values
        high = values.kthvalue(values.shape[1] - rank, dim=1).values
    return torch.stack((low, high)).view(2, -1, 1, 1, 1)


def stretch_between(y: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Map low → 0 and high → 1, [N, 1, 1, 1] each, and clamp; [N, 1, H, W].

    Where the two are equal to 1e-6 the image is only clamped.
    """
    span = high - low
    flat = span <= _FLAT
    return torch.where(flat, y, (y - low) / span.masked_fill(flat, 1)).clamp(0, 1)


def stretch_to_sources(y: Tensor, ir: Tensor, vis: Tensor) -> Tensor:
    """Stretch each image of [N, 1, H, W] to the range of its sources, and no further.

    The percentiles of :func:`stretch_percentile` become the least and greatest luma of the two
    sources [N, 1, H, W], each moved out by ``MARGIN`` of the range: what was stretched past them
    would be noise.
    """
    return stretch_between(y, *source_limits(y, ir, vis))


def source_limits(y: Tensor, ir: Tensor, vis: Tensor, share: float = 0.0001) -> Tensor:
    """The values that become 0 and 1 in :func:`stretch_to_sources`: [2, N, 1, 1, 1]."""
    low, high = stretch_limits(y, "percentile", share)
    both = torch.stack((ir, vis)).flatten(2)
    least = both.amin((0, 2)).view(-1, 1, 1, 1)
    most = both.amax((0, 2)).view(-1, 1, 1, 1)
    margin = MARGIN * (most - least)
    least, most = (least - margin).clamp_(min=0), (most + margin).clamp_(max=1)
    flat = (high - low <= _FLAT) | (most - least <= _FLAT)
    scale = (high - low) / (most - least).masked_fill(flat, 1)
    zero = low - least * scale
    limits = torch.stack((zero, zero + scale))
    return torch.where(flat, limits.new_tensor([0.0, 1.0]).view(2, 1, 1, 1, 1), limits)


STRETCH: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "none": lambda y, _ir, _vis: y.clamp(0, 1),
    "minmax": lambda y, _ir, _vis: stretch_minmax(y),
    "percentile": lambda y, _ir, _vis: stretch_percentile(y),
    "sources": stretch_to_sources,
}
"""what ``FuseConfig.stretch`` names: fused luma and the sources' [N, 1, H, W] to luma in [0, 1]"""
