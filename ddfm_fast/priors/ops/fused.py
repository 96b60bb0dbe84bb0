"""The operations on CUDA: Triton kernels around cuDNN's convolutions and cuBLAS' products."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .base import Conv, Feature, Norm, convolve, rows_of
from .plain import PlainOps


class FusedOps(PlainOps):
    """The same by Triton kernels around cuDNN's convolutions and cuBLAS' products.

    Convolutions run without their bias, which joins what reads their output next: the moments of
    the norm, or the sum with the residual. Concatenations are not made: norms take their moments
    and 1x1 convolutions their products part by part. With ``thin_convs`` the first and the last
    convolution are ``ddfm_fast.kernels.thin_conv``'s; whether that is faster is not measured yet.
    """

    def __init__(self, kernels=None, *, thin_convs: bool = False):
        if kernels is None:
            from ddfm_fast.kernels import group_norm

            kernels = group_norm
        self.kernels, self.thin_convs = kernels, thin_convs
        self.packed: dict[tuple[str, int], Tensor] = {}

    def first(self, x: Tensor, conv: Conv) -> Feature:
        return self._joined(self._thin(x, conv, None), conv.bias)

    def enter(
        self, parts: Sequence[Feature], norm: Norm, resample: str, conv: Conv
    ) -> tuple[Tensor, tuple[Feature, ...]]:
        affine = self._affine(parts, norm)
        if resample == "up" and conv.up_kernel is not None:
            resample = ""
        down = resample == "down"
        h, pooled = self.kernels.apply(
            [p.data for p in parts], affine, resample=resample, pool_input=down
        )
        return h, (Feature(pooled),) if down else tuple(parts)

    def middle(self, h: Tensor, conv: Conv, bias: Tensor, norm: Norm) -> Tensor:
        h = convolve(h, conv, None)
        affine = self._affine([Feature(h, self.kernels.moments(h))], norm, bias)
        return self.kernels.apply([h], affine, out=h)[0]

    def leave(
        self, h: Tensor, conv: Conv, residual: Sequence[Feature], skip: Conv | None, up: bool
    ) -> Feature:
        h = convolve(h, conv, None)
        if skip is None:  # never of a concatenation, which has more channels than come out
            return self._joined(h, conv.bias, residual[0].data, up)
        first = 0
        for part in residual:
            width = part.data.shape[1]
            weight = skip.weight[:, first : first + width, 0, 0]
            rows_of(h).addmm_(rows_of(part.data), weight.t())
            first += width
        return self._joined(h, conv.bias)

    def tokens(self, feature: Feature, norm: Norm) -> Tensor:
        return rows_of(
            self.kernels.apply([feature.data], self._affine([feature], norm), silu=False)[0]
        )

    def project(self, h: Tensor, conv: Conv, residual: Feature) -> Feature:
        n, c, height, width = residual.data.shape
        h = F.linear(h, conv.weight).view(n, height, width, c).permute(0, 3, 1, 2)
        return self._joined(h, conv.bias, residual.data)

    def resize(self, feature: Feature, conv: Conv | None, direction: str) -> Feature:
        h = super().resize(Feature(feature.data), conv, direction).data
        return Feature(h, self.kernels.moments(h))

    def last(self, feature: Feature, norm: Norm, conv: Conv) -> Tensor:
        h, _ = self.kernels.apply([feature.data], self._affine([feature], norm), out=feature.data)
        return self._thin(h, conv, conv.bias)

    def _thin(self, x: Tensor, conv: Conv, bias: Tensor | None) -> Tensor:
        """Convolve where there are few channels on one side."""
        if not self.thin_convs:
            return convolve(x, conv, bias)
        from ddfm_fast.kernels.thin_conv import MOST_ELEMENTS, pack, suits, thin_conv

        pixels, widest = x.shape[2] * x.shape[3], max(conv.weight.shape[:2])
        if not suits(conv.weight) or pixels * widest > MOST_ELEMENTS:
            return convolve(x, conv, bias)
        key = conv.name, len(conv.weight)
        if key not in self.packed:
            self.packed[key] = pack(conv.weight)
        return thin_conv(x, self.packed[key], bias)

    def _joined(self, h: Tensor, bias: Tensor, residual=None, up: bool = False) -> Feature:
        return Feature(h, self.kernels.join_(h, bias, residual, upsample=up))

    def _affine(self, parts: Sequence[Feature], norm: Norm, bias: Tensor | None = None) -> Tensor:
        rows = parts[0].data.shape[2] * parts[0].data.shape[3]
        moments = [p.moments for p in parts]
        return self.kernels.scale_shift(moments, rows, norm.weight, norm.bias, bias)
