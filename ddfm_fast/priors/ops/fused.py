"""The operations on CUDA: Triton kernels around cuDNN's convolutions and cuBLAS' products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .base import Conv, Feature, Norm, convolve, rows_of
from .plain import PlainOps


class FusedOps(PlainOps):
    """The same by Triton kernels around cuDNN's convolutions and cuBLAS' products.

    Convolutions run without their bias, which joins what reads their output next: the moments of
    the norm, or the sum with the residual. Concatenations are not made. 1x1 convolutions, and 3x3
    ones to at most ``own`` channels, are ``ddfm_fast.kernels.conv``'s: these are on the largest
    maps, where the moments and the residual, which come with them, save most traffic. With
    ``thin_convs`` the first and the last convolution are ``ddfm_fast.kernels.thin_conv``'s. What is
    faster on a GPU is not measured yet.
    """

    OWN = 256
    """channels of a 3x3 convolution's result up to which it is ours: by roofline alone"""

    def __init__(self, kernels=None, layers=None, *, own: int = OWN, thin_convs: bool = False):
        if kernels is None or layers is None:
            from ddfm_fast.kernels import conv, group_norm

            kernels, layers = group_norm, conv
        self.kernels, self.layers = kernels, layers
        self.own, self.thin_convs = own, thin_convs
        self.packed: dict[tuple[str, int], Any] = {}

    def first(self, x: Tensor, conv: Conv) -> Feature:
        return self._joined(self._thin(x, conv, None), conv.bias)

    def enter(
        self, parts: Sequence[Feature], norm: Norm, resample: str, conv: Conv
    ) -> tuple[Tensor, tuple[Feature, ...]]:
        if resample == "up" and conv.up_kernel is not None:
            resample = ""
        down = resample == "down"
        h, pooled = self._normalized(parts, norm, resample=resample, pool_input=down)
        return h, (Feature(pooled),) if down else tuple(parts)

    def middle(self, h: Tensor, conv: Conv, bias: Tensor, norm: Norm) -> Tensor:
        if self._ours(conv):
            feature = self._layer([Feature(h)], conv, bias=bias)
            return self._normalized([feature], norm, out=feature.data)[0]
        h = convolve(h, conv, None)
        feature = Feature(h, self.kernels.moments(h))
        return self._normalized([feature], norm, bias=bias, out=h)[0]

    def leave(
        self, h: Tensor, conv: Conv, residual: Sequence[Feature], skip: Conv | None, up: bool
    ) -> Feature:
        own, (x, *_) = self._ours(conv), residual
        size = "up" if up else ""
        if own and skip is None:
            return self._layer(
                [Feature(h)], conv, bias=conv.bias, residual=x.data, residual_size=size
            )
        if own and skip is not None:
            source = self._packed(skip), [part.data for part in residual]
            return self._layer([Feature(h)], conv, bias=conv.bias, skip=source)
        h = convolve(h, conv, None)
        if skip is not None:
            return self._layer(residual, skip, bias=conv.bias, residual=h)
        return self._joined(h, conv.bias, x.data, up)

    def queries(self, feature: Feature, norm: Norm, conv: Conv) -> Tensor:
        h = self._layer(
            [feature], conv, bias=conv.bias.float(), norm=norm[1:], silu=False, want_moments=False
        )
        return rows_of(h.data)

    def project(self, h: Tensor, conv: Conv, residual: Feature) -> Feature:
        n, c, height, width = residual.data.shape
        h = h.contiguous().view(n, height, width, c).permute(0, 3, 1, 2)
        return self._layer([Feature(h)], conv, bias=conv.bias, residual=residual.data)

    def resize(self, feature: Feature, conv: Conv | None, direction: str) -> Feature:
        h = super().resize(Feature(feature.data), conv, direction).data
        return Feature(h, self.kernels.moments(h))

    def last(self, feature: Feature, norm: Norm, conv: Conv) -> Tensor:
        h, _ = self._normalized([feature], norm, out=feature.data)
        return self._thin(h, conv, conv.bias)

    def _ours(self, conv: Conv) -> bool:
        return conv.up_kernel is None and len(conv.weight) <= self.own

    def _layer(self, parts: Sequence[Feature], conv: Conv, **options) -> Feature:
        return Feature(*self.layers.layer(parts, self._packed(conv), **options))

    def _packed(self, conv: Conv):
        key = conv.name, len(conv.weight)
        if key not in self.packed:
            self.packed[key] = self.layers.pack(conv.weight)
        return self.packed[key]

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

    def _normalized(
        self, parts: Sequence[Feature], norm: Norm, **options
    ) -> tuple[Tensor, Tensor | None]:
        return self.kernels.normalize(parts, norm.weight, norm.bias, **options)
