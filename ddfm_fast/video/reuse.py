"""Reuse what was denoised before, where a noisy frame shows the same.

A noisy source y with noise σ and its clean picture x leave r = (y − x) / σ: white noise of variance
1, plus what the denoiser mistook for noise. So the means of r and of r² over blocks of pixels are
kept with the clean picture, and both are carried to the next frame, still or along the flow. Where
this frame's means differ, something has changed: the prior denoises these parts again, and
everything else is reused. Smaller changes remain for at most ``REUSES`` frames: then the whole
frame is denoised.

This is used only on a CPU. On a GPU an evaluation is a CUDA graph of the frame's size, and takes
less time than this would.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..restore.denoise import CLIPPED
from ..restore.noise_level import NoiseLevel
from .motion import Motion
from .trust import moved

REUSES = 5
"""most frames in a row that are not denoised as a whole"""
BLOCK = 8
"""side, in pixels, of the blocks over which r is averaged"""
LIMITS = {1: 0.6, 2: 0.35}
"""most that the mean of r over this many blocks per side may be, and may differ: 5 times what noise
alone does"""
MOST, TIMES = 2.0, 1.5
"""most that the mean of r² over a block may be (1.00 ± 0.18 for noise alone), and may grow"""
BETTER = 0.02
"""how much less r² over 3x3 blocks must be when moving than when standing still"""
HALO = 16
"""pixels around a part that are denoised with it, as context for the network"""
WHOLE = 0.6
"""changed share of the frame from which on all of it is denoised"""


class Part(NamedTuple):
    """A rectangle of a frame, in pixels."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        """Pixels."""
        return (self.bottom - self.top) * (self.right - self.left)

    def meets(self, other: Part) -> bool:
        """Return whether the two have pixels in common."""
        down = self.top < other.bottom and other.top < self.bottom
        return down and self.left < other.right and other.left < self.right

    def with_(self, other: Part) -> Part:
        """Return the rectangle around both."""
        return Part(
            min(self.top, other.top), max(self.bottom, other.bottom),
            min(self.left, other.left), max(self.right, other.right),
        )  # fmt: skip


class Clean(NamedTuple):
    """A clean picture, and the residual of the noisy one."""

    plane: Tensor
    """[1, 1, H, W] in [0, 1]"""
    left: Tensor
    """means of r and r² over blocks: [1, 2, H', W']"""

    def along(self, flow: Tensor) -> Clean:
        """Move both along a flow [H, W, 2]."""
        flow = flow.to(torch.float32)
        coarse = F.avg_pool2d(flow.movedim(-1, 0)[None], BLOCK, ceil_mode=True)[0] / BLOCK
        down, across = (n.to(torch.float32) for n in _grid(*coarse.shape[-2:]))
        x, y = (coarse[0] + across).numpy(), (coarse[1] + down).numpy()
        left = [
            cv2.remap(part, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            for part in self.left[0].numpy()
        ]
        return Clean(moved(self.plane[0], flow)[None], torch.from_numpy(np.stack(left))[None])


class KeptClean:
    """One noisy source of a stream, whose clean picture is carried from frame to frame."""

    def __init__(self) -> None:
        self._clean: Clean | None = None
        self._reused = 0

    def __call__(
        self,
        motion: Motion,
        plane: Tensor,
        level: NoiseLevel,
        remove: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, int]:
        """Remove the noise from a frame.

        Args:
            motion: The frame's.
            plane: [1, 1, H, W] in [0, 1].
            level: Its noise.
            remove: Removes it from any part of the plane.

        Returns:
            The clean plane, and how often ``remove`` was called.
        """
        if plane.device.type != "cpu":
            return remove(plane), 1
        before, self._clean, found = self._clean, None, None
        if before is not None and before.plane.shape == plane.shape and not motion.cut:
            found = _reused(before, motion, plane, level, remove) if self._reused < REUSES else None
        self._reused = 0 if found is None else self._reused + 1
        if found is None:
            clean = remove(plane)
            found = Clean(clean, _left(plane, clean, level)), 1
        self._clean, calls = found
        return self._clean.plane, calls


def _reused(
    before: Clean,
    motion: Motion,
    plane: Tensor,
    level: NoiseLevel,
    remove: Callable[[Tensor], Tensor],
) -> tuple[Clean, int] | None:
    """Build the frame from the previous one and denoised parts; None to denoise all of it."""
    kept, left = before, _left(plane, before.plane, level)
    entering = torch.zeros_like(left[:, :1], dtype=torch.bool)
    if motion.flow is not None:
        there = before.along(torch.as_tensor(motion.flow))
        left_there = _left(plane, there.plane, level)
        better = _around(left_there[:, 1:]) + BETTER < _around(left[:, 1:])
        clean = torch.lerp(before.plane, there.plane, _weights(better, plane))
        kept = Clean(clean, torch.where(better, there.left, before.left))
        left = _left(plane, clean, level)
        entering = better & (F.max_pool2d(_outside(motion.flow), BLOCK, ceil_mode=True) > 0)
    changed = _grown(_unexplained(left, kept.left) | entering)
    parts = parts_of(changed[0, 0].numpy(), *plane.shape[-2:])
    if parts is None:
        return None
    clean, weights = kept.plane.clone(), _weights(changed, plane)
    for part in parts:
        at = (..., slice(part.top, part.bottom), slice(part.left, part.right))
        clean[at] = torch.lerp(clean[at], remove(plane[at].contiguous()), weights[at])
    if parts:
        kept = kept._replace(left=torch.where(changed, _left(plane, clean, level), kept.left))
    return kept._replace(plane=clean), len(parts)


def _left(plane: Tensor, clean: Tensor, level: NoiseLevel) -> Tensor:
    """Compute the means of r and of r² over blocks: [1, 2, H', W']."""
    r = _residual(plane, clean, level)
    return F.avg_pool2d(torch.cat([r, r * r], 1), BLOCK, ceil_mode=True)


def _residual(plane: Tensor, clean: Tensor, level: NoiseLevel) -> Tensor:
    """Compute r, which is white noise of variance 1 where ``clean`` is right."""
    sigma = torch.full((), max(level.sigma, 1e-3))
    if level.gain:
        sigma = (level.gain * 255 * clean + level.offset).clamp_min_(1e-3).sqrt_()
    sigma = sigma / 255
    expected = clean
    if float((plane <= 0.5 / 255).float().mean()) >= CLIPPED:
        expected = _clipped_mean(expected, sigma)
    if float((plane >= 1 - 0.5 / 255).float().mean()) >= CLIPPED:
        expected = 1 - _clipped_mean(1 - expected, sigma)
    return (plane - expected).div_(sigma)


def _clipped_mean(x: Tensor, sigma: Tensor) -> Tensor:
    """Return the mean of max(x + σ n, 0): what x shows on average if black clips the noise."""
    z = x / sigma
    density = torch.exp(z * z * -0.5) / math.sqrt(2 * math.pi)
    return x * torch.special.ndtr(z) + sigma * density


def _unexplained(left: Tensor, before: Tensor) -> Tensor:
    """Find the blocks [1, 1, H', W'] that have changed."""
    found = left[:, 1:] > (TIMES * before[:, 1:]).clamp_min_(MOST)
    now = torch.stack([left[:, 0], left[:, 0] - before[:, 0]], 1)
    for blocks, limit in LIMITS.items():
        both = F.avg_pool2d(now, blocks, ceil_mode=True).abs().amin(1, keepdim=True) > limit
        both = both.repeat_interleave(blocks, -1).repeat_interleave(blocks, -2)
        found |= both[..., : found.shape[-2], : found.shape[-1]]
    return found


def _grown(blocks: Tensor) -> Tensor:
    """Return the blocks and those around them."""
    return F.max_pool2d(blocks.float(), 3, 1, 1) > 0


def _outside(flow: Any) -> Tensor:
    """Mark where a flow [H, W, 2] comes from outside of the frame: 1 there, [1, 1, H, W]."""
    flow = torch.as_tensor(flow)
    height, width = flow.shape[:2]
    down, across = _grid(height, width)
    x, y = flow[..., 0] + across, flow[..., 1] + down
    outside = (x < 0) | (x > width - 1) | (y < 0) | (y > height - 1)
    return outside.float()[None, None]


def _around(blocks: Tensor) -> Tensor:
    """Compute means over 3x3 blocks."""
    return F.avg_pool2d(blocks, 3, 1, 1, count_include_pad=False)


@lru_cache(maxsize=4)
def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the row and column indices of a plane's pixels."""
    return torch.arange(height)[:, None], torch.arange(width)[None]


def _weights(blocks: Tensor, plane: Tensor) -> Tensor:
    """Turn blocks into soft weights [1, 1, H, W] of the plane's pixels."""
    size = [BLOCK * n for n in blocks.shape[-2:]]
    weights = F.interpolate(blocks.float(), size, mode="bilinear", align_corners=False)
    return weights[..., : plane.shape[-2], : plane.shape[-1]]


def parts_of(changed: np.ndarray, height: int, width: int) -> list[Part] | None:
    """Cover changed blocks by rectangles that do not meet; None if most of the frame has changed.

    Args:
        changed: bool [H', W'], blocks with sides of ``BLOCK`` pixels.
        height: Height of the frame, like ``width``.
        width: See ``height``.
    """
    count, _, stats, _ = cv2.connectedComponentsWithStats(changed.astype(np.uint8))
    parts: list[Part] = []
    for x, y, w, h, _ in stats[1:count].tolist():
        part = Part(
            max(0, y * BLOCK - HALO), min(height, (y + h) * BLOCK + HALO),
            max(0, x * BLOCK - HALO), min(width, (x + w) * BLOCK + HALO),
        )  # fmt: skip
        while met := [other for other in parts if other.meets(part)]:
            for other in met:
                parts.remove(other)
                part = part.with_(other)
        parts.append(part)
        if sum(one.area for one in parts) > WHOLE * height * width:
            return None
    return parts
