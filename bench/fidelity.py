"""The quality of a fused picture: the paper's six metrics, and its distance from the exact one."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ddfm_fast.metrics import compute, to_luma

METRICS = ("EN", "SD", "MI", "VIF", "Qabf", "SSIM")


def scores(fused, ir, vis) -> dict[str, float]:
    """Return the six metrics in the convention ``cddfuse``, of three 8-bit pictures.

    Also the worse source's VIF: a high VIF alone may come from a copy of one source.
    """
    fused = fused[..., 0] if fused.ndim == 3 and fused.shape[-1] == 1 else fused
    found = compute(*(to_luma(image) for image in (fused, ir, vis)), names=METRICS)
    return {name: float(found[name][0]) for name in (*METRICS, "VIF_min")}


def psnr(luma: Tensor, exact: Tensor) -> float:
    """Return dB between luma planes of one scale, whose range is 1; infinite if they are equal."""
    error = float((luma.double() - exact.double()).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def to_bytes(luma: Tensor) -> np.ndarray:
    """Convert a luma plane [1, 1, H, W] in [0, 1] to a gray picture uint8 [H, W], rounded alike."""
    plane = luma.detach().reshape(luma.shape[-2:])
    return torch.floor(plane.clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()
