"""Stretching a fused luma to the full range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .planes import check_planes

MARGIN = 0.1
"""share of the sources' range by which "sources" may stretch past it at either end"""
SHARE = 0.0001
"""share of the pixels that a percentile leaves out at either end"""
FLAT = 1e-6
"""largest span that counts as none"""


class Fused(NamedTuple):
    """Fused lumas, and the limits of their stretch."""

    luma: Tensor
    """[N, 1, H, W]"""
    limits: Tensor | None = None
    """[2, N, 1, 1, 1], the values that become 0 and 1; None: values outside of [0, 1] are
    clipped"""

    def stretched(self) -> Tensor:
        """Return the lumas in [0, 1]."""
        return stretched(self.luma, self.limits)

    def showing(self, luma: Tensor, where: Tensor) -> Fused:
        """Return these, but with another luma, cropped alike, where a mask is True.

        If the mask is a share from 0 to 1, the other luma is mixed in by that share.
        """
        height, width = self.luma.shape[-2:]
        luma, where = (x[..., :height, :width].to(self.luma.device) for x in (luma, where))
        if self.limits is not None:
            low, high = self.limits
            span = high - low
            luma = torch.where(span <= FLAT, luma, low + luma * span)
        if where.dtype == torch.bool:
            return self._replace(luma=torch.where(where, luma, self.luma))
        return self._replace(luma=torch.lerp(self.luma, luma, where.to(self.luma.dtype)))

    def images(self, first: int, count: int) -> Fused:
        """Return some of the images: lumas as views, limits contiguous, as kernels read them."""
        some = slice(first, first + count)
        limits = None if self.limits is None else self.limits[:, some].contiguous()
        return Fused(self.luma[some], limits)


def together(parts: Sequence[Fused]) -> Fused:
    """Join several into one; all lumas have one size, and all or none are to be stretched."""
    limits = [part.limits for part in parts if part.limits is not None]
    return Fused(joined([part.luma for part in parts]), joined(limits, 1) if limits else None)


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Concatenate tensors; a single one comes back as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim)


def stretch_limits(stretch: str, y: Tensor, ir: Tensor, vis: Tensor) -> Tensor | None:
    """Find the values that a stretch maps to 0 and 1, [2, N, 1, 1, 1]; None for "none".

    Args:
        stretch: "minmax" for the extremes of y; "percentile" for all but ``SHARE`` of it at either
            end; "sources" for what :func:`source_limits` says; "none".
        y: Fused luma [N, 1, H, W].
        ir: Luma of a source, of that shape; like ``vis``, it is used by "sources" alone.
        vis: See ``ir``.
    """
    if stretch == "none":
        return None
    return source_limits(y, ir, vis) if stretch == "sources" else own_limits(y, stretch)


def own_limits(y: Tensor, stretch: str, share: float = SHARE) -> Tensor:
    """Return the extremes ("minmax") or percentiles ("percentile") of images [N, 1, H, W].

    ``share`` of the pixels are beyond the percentiles at either end (order statistics, no
    interpolation): a single hot pixel does not decide the contrast.
    """
    check_planes(y, "y")
    values = y.flatten(1)
    if stretch == "minmax":
        low, high = values.aminmax(dim=1)
    else:
        rank = outside(values.shape[1], share)
        low = values.kthvalue(rank + 1, dim=1).values
        high = values.kthvalue(values.shape[1] - rank, dim=1).values
    return torch.stack((low, high)).view(2, -1, 1, 1, 1)


def outside(pixels: int, share: float = SHARE) -> int:
    """Return how many pixels of an image are beyond a percentile."""
    return int(share * (pixels - 1))


def source_limits(y: Tensor, ir: Tensor, vis: Tensor, share: float = SHARE) -> Tensor:
    """Find limits that map the percentiles of y to the range of its sources, and no further.

    The range is the sources' least and greatest luma, each moved outward by ``MARGIN`` of it:
    anything stretched past that would be noise.
    """
    low, high = own_limits(y, "percentile", share)
    both = torch.stack((ir, vis)).flatten(2)
    least = both.amin((0, 2)).view(-1, 1, 1, 1)
    most = both.amax((0, 2)).view(-1, 1, 1, 1)
    return limits_between(low, high, least, most)


def limits_between(low: Tensor, high: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Find limits that map low and high to the range plus a margin, [2, N, 1, 1, 1].

    Args:
        low: Percentile of a fused luma, [N, 1, 1, 1], as is ``high``.
        high: See ``low``.
        least: Least luma of the sources, of that shape.
        most: Their greatest.
    """
    margin = MARGIN * (most - least)
    least, most = (least - margin).clamp_(min=0), (most + margin).clamp_(max=1)
    flat = (high - low <= FLAT) | (most - least <= FLAT)
    scale = (high - low) / (most - least).masked_fill(flat, 1)
    zero = low - least * scale
    limits = torch.stack((zero, zero + scale))
    return torch.where(flat, limits.new_tensor([0.0, 1.0]).view(2, 1, 1, 1, 1), limits)


def stretched(y: Tensor, limits: Tensor | None) -> Tensor:
    """Map images [N, 1, H, W] by limits [2, N, 1, 1, 1], if there are any, and clamp to [0, 1]."""
    return y.clamp(0, 1) if limits is None else stretch_between(y, *limits)


def stretch_between(y: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Map low → 0 and high → 1, [N, 1, 1, 1] each, and clamp; [N, 1, H, W].

    If the two are equal to within 1e-6 there is no contrast to stretch, and the image is only
    clamped.
    """
    span = high - low
    flat = span <= FLAT
    return torch.where(flat, y, (y - low) / span.masked_fill(flat, 1)).clamp(0, 1)
