"""What a frame shows unchanged: how far the previous frame's sources can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FLOW_MARGIN = 1.0
"""gray levels by which moving must explain a frame better than standing still"""
_GRAY_LEVELS = 255


class Kept(NamedTuple):
    """Lumas of the previous frame, [H, W] in [0, 1]."""

    ir: Tensor
    vis: Tensor
    fused: Tensor


def carry(
    now: Sequence[Tensor], kept: Kept, flow: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Mix the sources of a frame with those of the previous frame, as far as they are trusted.

    Args:
        now: Both sources [H, W] in [0, 1].
        kept: The previous frame.
        flow: [H, W, 2], how it moved, or None.
        scale: Gray levels of change at which trust falls to 1/e.

    Returns:
        Both sources.
    """
    if now[0].device.type == "cpu":
        from ..kernels.cpu import carry as compiled

        if compiled.status() is None:
            return compiled.carry(now, kept[:2], flow, scale, FLOW_MARGIN)
    both = torch.stack(tuple(now))
    before, trust = trusted(both, torch.stack(kept[:2]), flow, scale)
    first, second = torch.lerp(both, before, trust)
    return first, second


def trusted(now: Tensor, kept: Tensor, flow: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Move the previous frame where that explains the sources better, and return how well it does.

    Args:
        now: Both sources [2, H, W] in [0, 1].
        kept: Planes [C, H, W] of the previous frame, its sources first.
        flow: As for :func:`carry`, like ``scale``.
        scale: See ``flow``.

    Returns:
        The planes, moved or not, and the trust in them [1, H, W].
    """
    d = change(now, kept)
    if flow is not None:
        there = moved(kept, flow)
        d_there = change(now, there)
        better = d_there + FLOW_MARGIN < d
        kept = torch.where(better, there, kept)
        d = torch.where(better, d_there, d)
    return kept, torch.exp(-d / scale)


def change(now: Tensor, kept: Tensor) -> Tensor:
    """Compute d [1, H, W] in gray levels: sources [2, H, W] against the first two of ``kept``."""
    d = (now - kept[:2]).abs_().amax(0, keepdim=True).mul_(_GRAY_LEVELS)
    return F.avg_pool2d(d, 3, 1, 1, count_include_pad=False)


def moved(planes: Tensor, flow: Tensor) -> Tensor:
    """Sample planes [C, H, W] in [0, 1] at (x + dx, y + dy) of the flow: bicubic, edges repeated.

    It is bicubic because repeated moving by a linear filter blurs.
    """
    height, width = planes.shape[-2:]
    rows = torch.arange(height, device=planes.device, dtype=planes.dtype)[:, None]
    columns = torch.arange(width, device=planes.device, dtype=planes.dtype)
    grid = torch.stack(
        [
            (flow[..., 0] + columns) * (2 / (width - 1)) - 1,
            (flow[..., 1] + rows) * (2 / (height - 1)) - 1,
        ],
        dim=-1,
    )
    sampled = F.grid_sample(planes[None], grid[None], "bicubic", "border", align_corners=True)
    return sampled[0].clamp_(0, 1)
