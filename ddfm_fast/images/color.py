"""Luma, chroma, and putting the two together again."""

from __future__ import annotations

import torch
from torch import Tensor

from .planes import check_planes

CHROMA_THRESHOLD = 1.5 / 255
"""most that the channels of a gray pixel differ by"""


def luma(rgb: Tensor) -> Tensor:
    """Compute luma, [N, 3, H, W] to [N, 1, H, W]: 0.299 R + 0.587 G + 0.114 B.

    These are the weights of ITU-R BT.601, full range. Gray pixels (R = G = B) give exactly that
    gray; one channel is returned as it is.
    """
    if check_planes(rgb, "rgb") == 1:
        return rgb
    red, green, blue = rgb.split(1, dim=1)
    # Written as differences from green: exact for gray, where 0.299 + 0.587 + 0.114 would round.
    return torch.add(green, red - green, alpha=0.299).add_(blue - green, alpha=0.114)


OF_BLUE, OF_RED = 1 / 1.772, 1 / 1.402
"""B − Y and R − Y to the range of one channel (ITU-R BT.601)"""


def chroma_planes(rgb: Tensor) -> Tensor:
    """Compute Cb and Cr about ½ of RGB [N, 3, H, W] in [0, 1]: [2, N, 1, H, W]."""
    y = luma(rgb)
    blue = (rgb[:, 2:] - y) * OF_BLUE + 0.5
    red = (rgb[:, :1] - y) * OF_RED + 0.5
    return torch.stack((blue, red))


def has_chroma(rgb: Tensor) -> Tensor:
    """Return which images of [N, C, H, W] in [0, 1] have color: bool [N], on the same device.

    An image has color when the channels of any pixel differ by more than 1.5/255. Gray saved as
    RGB has equal channels, and a color conversion in 8 bits moves them apart by one level.
    """
    if check_planes(rgb, "rgb") == 1:
        return torch.zeros(rgb.shape[0], dtype=torch.bool, device=rgb.device)
    spread = rgb.amax(dim=1) - rgb.amin(dim=1)
    return spread.flatten(1).amax(dim=1) > CHROMA_THRESHOLD


def with_luma(y: Tensor, source: Tensor, *, dims: bool = False) -> Tensor:
    """Give `source` the luma `y`: RGB [N, 3, H, W] in [0, 1] with luma(RGB) = y.

    The chroma source - luma(source) is added to y. Where a channel would leave [0, 1] the pixel's
    chroma is scaled toward gray, at the same hue, by just as much as makes it fit.

    Args:
        y: [N, 1, H, W], clamped to [0, 1].
        source: [N, 3, H, W] in [0, 1].
        dims: Where y is darker than the source, scale the chroma by as much, as shade does: at the
            same difference of channels a dark pixel would be far more saturated.

    Raises:
        ValueError: Shapes that do not fit each other.
    """
    if check_planes(source, "source") != 3 or y.shape != (len(source), 1, *source.shape[2:]):
        raise ValueError(
            f"y {tuple(y.shape)} and source {tuple(source.shape)}: expected [N, 1, H, W] and "
            "[N, 3, H, W] of the same N, H and W"
        )
    y = y.clamp(0, 1)
    own = luma(source)
    chroma = source - own
    if dims:
        chroma *= (y / own.clamp(min=1 / 255)).clamp_(max=1)
    # The chroma's extremes have opposite signs; the floor only keeps gray pixels from 0/0.
    tiny = 1e-12
    fit_above = (1 - y) / chroma.amax(dim=1, keepdim=True).clamp(min=tiny)
    fit_below = y / chroma.amin(dim=1, keepdim=True).neg().clamp_(min=tiny)
    scale = torch.minimum(fit_above, fit_below).clamp_(max=1)
    return (chroma * scale).add_(y).clamp_(0, 1)
