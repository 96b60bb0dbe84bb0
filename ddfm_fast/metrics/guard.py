"""The guard against scoring well by copying: is a fused image nearly one of its sources?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .inputs import to_triple
from .measures import correlation

LEAST_CC = 0.99
LEAST_PSNR = 34.0
LEAST_LEAD = 6.0


@torch.no_grad()
def near_copy(fused: Any, ir: Any, vis: Any) -> str | None:
    """Name the source that ``fused`` is nearly a copy of: "ir", "vis", or None.

    The images are as in `compute`, one triple only. A source counts as copied if all of this holds:

    - its linear correlation with fused is positive and at least 0.99;
    - after the best affine fit a·source + b, fused differs from it by an RMS of at most 5.1 gray
      levels: a PSNR of at least 34 dB, at peak 255;
    - the other source's fit is at least 6 dB worse, so that two sources that look alike are not
      an alarm.

    The fit forgives a changed contrast and brightness, the limits a gamma of 1.1 and noise of
    2 gray levels. If one source is nearly flat, any fusion of the pair is nearly the other.

    Args:
        fused: Luma as `compute` takes it, one image.
        ir: The first source.
        vis: The second source.

    Raises:
        ValueError: There is more than one triple, or as in `compute`.
        TypeError: As in `compute`.
    """
    planes = to_triple(fused, ir, vis)
    if len(planes[0]) != 1:
        raise ValueError(
            f"fused: got {len(planes[0])} images, expected one; call near_copy for each triple"
        )
    f, i, v = (p.double() for p in planes)
    cc = correlation(torch.cat([i, v], 1), f)[0]
    psnr = _affine_psnr(f, cc)
    best = int(cc.argmax())
    copied = (
        cc[best] >= LEAST_CC
        and psnr[best] >= LEAST_PSNR
        and psnr[best] - psnr[1 - best] >= LEAST_LEAD
    )
    return ("ir", "vis")[best] if copied else None


def _affine_psnr(fused: Tensor, cc: Tensor) -> Tensor:
    """Return PSNR in dB after the best affine fit, whose error is (1 − CC²) of fused's variance."""
    error = fused.var(correction=0) * (1 - cc**2)
    return 10 * torch.log10(255.0**2 / error.clamp(min=1e-6))
