"""Every operation by PyTorch's own functions, on any device: the twin of the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..unet import NORM_EPS
from ..unet_config import GROUPS
from .base import Conv, Feature, Norm, Ops, attention, conv2d, convolve, double, rows_of

NAIVE_SUMS = 2**13
"""pixels up to which PyTorch's group norm of channels_last maps on a CPU has float32's accuracy"""
IN_CACHE = 2**20
"""elements that are read twice, from the cache, before the next ones are read"""


def exact_group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``F.group_norm`` of float32 channels_last maps, with sums that do not lose digits.

    There, PyTorch's own function adds pixel by pixel in float32 (2.13, CPU): over 544x960 pixels
    its error is 2e-4, and eps of the embedded prior was wrong by 2.6e-3, ten times as much as in
    the official layout. Here, sums are PyTorch's cascaded ones, and NumPy combines them in float64:
    for so few numbers its calls cost a tenth.
    """
    n, channels = x.shape[:2]
    sums = np.zeros((2, n, channels))
    for part in x.split(max(1, IN_CACHE // (channels * x.shape[3])), 2):
        sums[0] += part.sum((2, 3)).numpy()
        sums[1] += (part * part).sum((2, 3)).numpy()
    groups = GROUPS, channels // GROUPS
    count = x[0, 0].numel() * groups[1]
    mean, square = sums.reshape(2, n, *groups).sum(-1, keepdims=True) / count
    scale = weight.detach().numpy().reshape(groups) / np.sqrt(
        np.maximum(square - mean * mean, 0) + NORM_EPS
    )
    shift = bias.detach().numpy().reshape(groups) - mean * scale
    scale, shift = (
        torch.from_numpy(a.astype(np.float32)).view(n, channels, 1, 1) for a in (scale, shift)
    )
    return torch.addcmul(shift, x, scale)


class PlainOps(Ops[Tensor]):
    """Every operation by PyTorch's own functions, on any device."""

    def first(self, x: Tensor, conv: Conv) -> Feature:
        return Feature(self.convolve(x, conv, conv.bias))

    def enter(
        self, parts: Sequence[Feature], norm: Norm, resample: str, conv: Conv
    ) -> tuple[Tensor, tuple[Feature, ...]]:
        x = parts[0].data if len(parts) == 1 else torch.cat([p.data for p in parts], 1)
        h = self.norm_silu(x, norm)
        if resample == "down":
            return F.avg_pool2d(h, 2), (Feature(F.avg_pool2d(x, 2)),)
        if resample == "up" and conv.up_kernel is None:
            h = double(h)
        return h, (Feature(x),)

    def middle(self, h: Tensor, conv: Conv, bias: Tensor, norm: Norm) -> Tensor:
        return self.norm_silu(self.convolve(h, conv, bias), norm)

    def leave(
        self, h: Tensor, conv: Conv, residual: Sequence[Feature], skip: Conv | None, up: bool
    ) -> Feature:
        x = double(residual[0].data) if up else residual[0].data
        if skip is not None:
            x = self.convolve(x, skip, None)
        return Feature(self.convolve(h, conv, conv.bias).add_(x))

    def queries(self, feature: Feature, norm: Norm, conv: Conv) -> Tensor:
        h = self.tokens(feature, norm)
        return F.linear(h, conv.weight, conv.bias.to(h.dtype))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v)

    def project(self, h: Tensor, conv: Conv, residual: Feature) -> Feature:
        n, c, height, width = residual.data.shape
        h = F.linear(h, conv.weight, conv.bias.to(h.dtype)).view(n, height, width, c)
        return Feature(h.permute(0, 3, 1, 2).add_(residual.data))

    def resize(self, feature: Feature, conv: Conv | None, direction: str) -> Feature:
        x = feature.data
        if direction == "down":
            return Feature(F.avg_pool2d(x, 2) if conv is None else self.halve(x, conv))
        if conv is None:
            return Feature(double(x))
        x = x if conv.up_kernel is not None else double(x)
        return Feature(self.convolve(x, conv, conv.bias))

    def last(self, feature: Feature, norm: Norm, conv: Conv) -> Tensor:
        return self.convolve(self.norm_silu(feature.data, norm), conv, conv.bias)

    def tokens(self, feature: Feature, norm: Norm) -> Tensor:
        return rows_of(self.norm(feature.data, norm))

    def convolve(self, x: Tensor, conv: Conv, bias: Tensor | None) -> Tensor:
        return convolve(x, conv, bias)

    def halve(self, x: Tensor, conv: Conv) -> Tensor:
        return conv2d(x, conv.weight, conv.bias.to(x.dtype), stride=2, padding=(1, 1))

    @staticmethod
    def norm(x: Tensor, norm: Norm) -> Tensor:
        weight, bias = norm.weight, norm.bias
        naive = x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad
        if naive and x[0, 0].numel() > NAIVE_SUMS and not torch.compiler.is_compiling():
            return exact_group_norm(x, weight, bias)
        if x.device.type != "cpu":  # only there may activations and parameters differ in dtype
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        return F.group_norm(x, GROUPS, weight, bias, NORM_EPS)

    def norm_silu(self, x: Tensor, norm: Norm) -> Tensor:
        return F.silu(self.norm(x, norm), inplace=True)
