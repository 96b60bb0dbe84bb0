"""Luma, chroma, and putting the two together again."""

from __future__ import annotations

import torch
from torch import Tensor

from .planes import check_planes

_CHROMA_THRESHOLD = 1.5 / 255


def luma(rgb: Tensor) -> Tensor:
    """Luma of [N, 3, H, W] as [N, 1, H, W]: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601, full range).

    Grey pixels (R = G = B) give exactly that grey; one channel is returned as it is.
    """
    if check_planes(rgb, "rgb") == 1:
        return rgb
    red, green, blue = rgb.split(1, dim=1)
    # Written as differences from green: exact for grey, where 0.299 + 0.587 + 0.114 would round.
    return torch.add(green, red - green, alpha=0.299).add_(blue - green, alpha=0.114)


def has_chroma(rgb: Tensor) -> Tensor:
    """Which images of [N, C, H, W] in [0, 1] are coloured: bool [N], on the same device.

    An image is coloured when the channels of any pixel differ by more than 1.5/255. Grey saved as
    RGB has equal channels, and a colour conversion in 8 bits moves them apart by one level.
    """
    if check_planes(rgb, "rgb") == 1:
        return torch.zeros(rgb.shape[0], dtype=torch.bool, device=rgb.device)
    spread = rgb.amax(dim=1) - rgb.amin(dim=1)
    return spread.flatten(1).amax(dim=1) > _CHROMA_THRESHOLD


def with_luma(y: Tensor, source: Tensor) -> Tensor:
    """The colours of `source` at the luma `y`: RGB [N, 3, H, W] in [0, 1] with luma(RGB) = y.

    y: [N, 1, H, W], clamped to [0, 1]; source: [N, 3, H, W] in [0, 1]. The chroma
    source - luma(source) is added to y; where a channel would leave [0, 1] the pixel's chroma is
    scaled towards grey, at the same hue, by just as much as makes it fit.
    """
    if check_planes(source, "source") != 3 or y.shape != (len(source), 1, *source.shape[2:]):
        raise ValueError(
            f"y {tuple(y.shape)} and source {tuple(source.shape)}: expected [N, 1, H, W] and "
            "[N, 3, H, W] of the same N, H and W"
        )
    y = y.clamp(0, 1)
    chroma = source - luma(source)
    # The chroma's extremes have opposite signs; the floor only keeps grey pixels from 0/0.
    tiny = 1e-12
    fit_above = (1 - y) / chroma.amax(dim=1, keepdim=True).clamp_(min=tiny)
    fit_below = y / chroma.amin(dim=1, keepdim=True).neg_().clamp_(min=tiny)
    scale = torch.minimum(fit_above, fit_below).clamp_(max=1)
    return chroma.mul_(scale).add_(y).clamp_(0, 1)
