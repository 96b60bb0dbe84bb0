"""The operations on CUDA: Triton kernels around cuDNN's convolutions and cuBLAS' products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..precision import convolutions_in_tf32
from .base import Conv, Feature, Norm, convolve, fits_layer, rows_of
from .plain import PlainOps


class FusedOps(PlainOps):
    """The same by Triton kernels around cuDNN's convolutions and cuBLAS' products.

    Convolutions run without their bias, which joins what reads their output next: the moments of
    the norm, or the sum with the residual. Concatenations are not made. 1x1 convolutions, and 3x3
    ones with few channels on one side or with at most ``own`` output channels, are done by
    ``ddfm_fast.kernels.conv``, with the norm before and the residual and moments after.
    """

    OWN = 0
    """output channels up to which our kernel does a 3x3 convolution. 0 by default: it saves
    traffic, but on paper it would have to come closer to the peak than its tiles allow
    (bench/results/prior-paper-2026-11-28.md)"""

    def __init__(self, kernels=None, layers=None, *, own: int = OWN):
        self.launches = kernels is None or layers is None
        if kernels is None or layers is None:
            from ddfm_fast.kernels import conv, group_norm

            kernels, layers = group_norm, conv
        self.kernels, self.layers = kernels, layers
        self.own = own
        self.packed: dict[tuple[str, int], Any] = {}

    def for_graphs(self) -> FusedOps:
        return GraphFusedOps(own=self.own) if self.launches else self

    def first(self, x: Tensor, conv: Conv) -> Feature:
        if not fits_layer(conv.weight.shape[1], len(conv.weight)):
            return self._joined(convolve(x, conv, None), conv.bias)
        return self._layer([Feature(x)], conv, bias=conv.bias)

    def enter(
        self, parts: Sequence[Feature], norm: Norm, resample: str, conv: Conv
    ) -> tuple[Tensor, tuple[Feature, ...]]:
        if resample == "up" and conv.up_kernel is not None:
            resample = ""
        down = resample == "down"
        h, pooled = self._normalized(parts, norm, resample=resample, pool_input=down)
        return h, tuple(parts) if pooled is None else (Feature(pooled),)

    def middle(self, h: Tensor, conv: Conv, bias: Tensor, norm: Norm) -> Tensor:
        if self._ours(conv):
            feature = self._layer([Feature(h)], conv, bias=bias)
            return self._normalized([feature], norm, out=feature.data)[0]
        h = convolve(h, conv, None)
        if self.kernels.suits_whole(h):
            return self.kernels.normalize_whole_(h, norm.weight, norm.bias, bias)
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
            [feature], conv, bias=conv.bias, norm=norm[1:], silu=False, want_moments=False
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
        if not fits_layer(conv.weight.shape[1], len(conv.weight)):
            h, _ = self._normalized([feature], norm, out=feature.data)
            return convolve(h, conv, conv.bias)
        return self._layer([feature], conv, bias=conv.bias, norm=norm[1:], want_moments=False).data

    def _ours(self, conv: Conv) -> bool:
        return conv.up_kernel is None and len(conv.weight) <= self.own

    def _layer(self, parts: Sequence[Feature], conv: Conv, **options) -> Feature:
        tf32 = bool(convolutions_in_tf32())
        return Feature(*self.layers.layer(parts, self._packed(conv), tf32=tf32, **options))

    def _packed(self, conv: Conv):
        key = conv.name, len(conv.weight)
        if key not in self.packed:
            self.packed[key] = self.layers.pack(conv.weight)
        return self.packed[key]

    def _joined(self, h: Tensor, bias: Tensor, residual=None, up: bool = False) -> Feature:
        return Feature(h, self.kernels.join_(h, bias, residual, upsample=up))

    def _normalized(
        self, parts: Sequence[Feature], norm: Norm, **options
    ) -> tuple[Tensor, Tensor | None]:
        return self.kernels.normalize(parts, norm.weight, norm.bias, **options)


class GraphFusedOps(FusedOps):
    """The same as nodes of a graph, which keep nothing: ``ddfm_fast.kernels.operators``."""

    def __init__(self, *, own: int):
        from ddfm_fast.kernels import operators

        super().__init__(operators, operators, own=own)

    def for_graphs(self) -> FusedOps:
        return self

    def _packed(self, conv: Conv):
        return conv.weight
