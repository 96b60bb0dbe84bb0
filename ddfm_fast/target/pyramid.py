"""Smoothing, halving and doubling of planes by the binomial filter, and Laplacian pyramids.

Burt and Adelson 1983 with the filter [1, 4, 6, 4, 1] / 16, whose standard deviation is 1 pixel.
Borders are mirrored. On a CPU OpenCV filters float32 planes; elsewhere shifted views are added,
which gives the same to rounding and can be differentiated. Planes are [H, W], both at least 4.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

_KERNEL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def smooth(x: Tensor) -> Tensor:
    """Smooth a plane [H, W] by a Gaussian of standard deviation 1."""
    if _by_opencv(x):
        return _plane(cv2.sepFilter2D(x.numpy(), -1, _KERNEL, _KERNEL))
    return _filter(_filter(x, -2, 1), -1, 1)


def down(x: Tensor) -> Tensor:
    """Smooth a plane [H, W] and keep every second row and column: ceil(H/2), ceil(W/2)."""
    if _by_opencv(x):
        return _plane(cv2.pyrDown(x.numpy()))
    return _filter(_filter(x, -2, 2), -1, 2)


def up(x: Tensor, height: int, width: int) -> Tensor:
    """Double a plane to [height, width], a size whose half (rounded up) it has."""
    if _by_opencv(x):
        return _plane(cv2.pyrUp(x.numpy(), dstsize=(width, height)))
    return _double(_double(x, -2, height), -1, width)


def _by_opencv(x: Tensor) -> bool:
    """Return whether OpenCV's filters can take the plane: several times faster on a CPU."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad


def _plane(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)


def down_times(x: Tensor, times: int) -> list[Tensor]:
    """List x, x halved, and so on: ``times`` + 1 planes."""
    planes = [x]
    for _ in range(times):
        planes.append(down(planes[-1]))
    return planes


def bands(gaussians: list[Tensor]) -> list[Tensor]:
    """List what each plane of ``down_times`` adds to the next one, then the last plane as is."""
    fine = zip(gaussians[:-1], gaussians[1:], strict=True)
    return [*(a - up(b, *a.shape[-2:]) for a, b in fine), gaussians[-1]]


def depth(height: int, width: int, most: int) -> int:
    """Count the halvings that leave at least 4 pixels a side, up to ``most``."""
    side, times = min(height, width), 0
    while times < most and (side + 1) // 2 >= 4:
        side, times = (side + 1) // 2, times + 1
    return times


def _filter(x: Tensor, axis: int, stride: int) -> Tensor:
    """Return the binomial filter along an axis, at every ``stride``-th place."""
    size = x.shape[axis]
    period = max(2 * size - 2, 1)  # of an axis mirrored at both ends, however short it is
    places = torch.arange(-2, size + 2, device=x.device).remainder(period)
    p = x.index_select(axis, torch.minimum(places, period - places).clamp_(max=size - 1))

    def shifted(k: int) -> Tensor:
        part = p.narrow(axis, k, size)
        if stride == 1:
            return part
        return part[..., ::stride] if axis == -1 else part[..., ::stride, :]

    out = shifted(1) + shifted(3)
    out.mul_(4 / 16).add_(shifted(2), alpha=6 / 16)
    return out.add_(shifted(0), alpha=1 / 16).add_(shifted(4), alpha=1 / 16)


def _double(x: Tensor, axis: int, size: int) -> Tensor:
    """Apply twice the filter's transpose: (a + 6 b + c) / 8 on places, (b + c) / 2 between."""
    last = x.shape[axis] - 1
    before = torch.cat((x.narrow(axis, 1, 1), x.narrow(axis, 0, last)), axis)
    after = torch.cat((x.narrow(axis, 1, last), x.narrow(axis, last, 1)), axis)
    shape = list(x.shape)
    shape[axis] = size
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    before.add_(after).mul_(1 / 8)
    _every_second(out, axis, 0).copy_(before.add_(x, alpha=6 / 8))
    half = size // 2
    _every_second(out, axis, 1).copy_(after.add_(x).mul_(0.5).narrow(axis, 0, half))
    return out


def _every_second(x: Tensor, axis: int, first: int) -> Tensor:
    return x[..., first::2] if axis == -1 else x[..., first::2, :]
