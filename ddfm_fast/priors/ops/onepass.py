"""The operations on CUDA with a layer in one launch, by ``ddfm_fast.kernels.conv``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..precision import convolutions_in_tf32
from ..unet_config import UNetConfig
from .base import Conv, Feature, Norm, Ops, Waiting, attention, fits_layer, rows_of


class OnePassOps(Ops[Waiting]):
    """The same with every layer in one launch: for networks of few channels.

    Norms, SiLU, resampling and concatenation happen as a convolution reads; biases, residuals and
    skips, and the moments for the next norm, as it writes. A residual block is two launches,
    attention three. Weights are laid out when first used, which doubles their memory.
    """

    WIDEST = 128
    """channels of a level up to which these are the default: cuDNN does wider convolutions"""
    DTYPES = (torch.float16, torch.bfloat16)
    """dtypes for which these are the default: float32 has no tensor cores without rounding"""

    def __init__(self, kernels=None):
        self.launches = kernels is None
        if kernels is None:
            from ddfm_fast.kernels import conv as kernels

        self.kernels = kernels
        self._weights: dict[tuple[str, int], tuple] = {}
        self._same: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    @classmethod
    def suit(cls, config: UNetConfig, dtype: torch.dtype) -> bool:
        """Return whether these operations suit a network."""
        area, narrow = config.pixel_unshuffle**2, max(config.level_channels) <= cls.WIDEST
        ends = fits_layer(area * config.in_channels, area * config.out_channels)
        return narrow and ends and dtype in cls.DTYPES

    def for_graphs(self) -> OnePassOps:
        return GraphOnePassOps() if self.launches else self

    def first(self, x: Tensor, conv: Conv) -> Feature:
        return self._run([Feature(x)], conv, bias=conv.bias)

    def enter(
        self, parts: Sequence[Feature], norm: Norm, resample: str, _conv: Conv
    ) -> tuple[Waiting, tuple[Feature, ...]]:
        return Waiting(parts, norm, resample), tuple(parts)

    def middle(self, h: Waiting, conv: Conv, bias: Tensor, norm: Norm) -> Waiting:
        h_next = self._run(h.parts, conv, bias=bias, norm=h.norm[1:], resample=h.resample)
        return Waiting((h_next,), norm)

    def leave(
        self, h: Waiting, conv: Conv, residual: Sequence[Feature], skip: Conv | None, up: bool
    ) -> Feature:
        options: dict = {"bias": conv.bias, "norm": h.norm[1:]}
        if skip is not None:
            options["skip"] = self._packed(skip), [x.data for x in residual]
        else:
            (x,) = residual
            smaller = h.parts[0].data.shape[2] < x.data.shape[2]
            options["residual"] = x.data
            options["residual_size"] = "up" if up else "down" if smaller else ""
        return self._run(h.parts, conv, **options)

    def queries(self, feature: Feature, norm: Norm, conv: Conv) -> Tensor:
        h = self._run(
            [feature], conv, bias=conv.bias, norm=norm[1:], silu=False, want_moments=False
        )
        return rows_of(h.data)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v)

    def project(self, h: Tensor, conv: Conv, residual: Feature) -> Feature:
        n, c, height, width = residual.data.shape
        h = h.contiguous().view(n, height, width, c).permute(0, 3, 1, 2)
        return self._run([Feature(h)], conv, bias=conv.bias, residual=residual.data)

    def resize(self, feature: Feature, conv: Conv | None, direction: str) -> Feature:
        if conv is None:
            conv, bias = self._unchanging(feature.data), None
        else:
            bias = conv.bias
            if direction == "down":
                return self._run([feature], conv, bias=bias, stride=2)
        return self._run([feature], conv, bias=bias, resample=direction)

    def last(self, feature: Feature, norm: Norm, conv: Conv) -> Tensor:
        return self._run([feature], conv, bias=conv.bias, norm=norm[1:], want_moments=False).data

    def _run(self, parts: Sequence[Feature], conv: Conv, **options) -> Feature:
        tf32 = bool(convolutions_in_tf32())
        return Feature(*self.kernels.layer(parts, self._packed(conv), tf32=tf32, **options))

    def _packed(self, conv: Conv):
        key = conv.name, len(conv.weight)
        if key not in self._weights:
            self._weights[key] = self.kernels.pack(conv.weight)
        return self._weights[key]

    def _unchanging(self, x: Tensor) -> Conv:
        """Make the 1x1 convolution that changes nothing: its launch resamples and finds moments."""
        channels = x.shape[1]
        key = channels, x.dtype, x.device
        if key not in self._same:
            self._same[key] = torch.eye(channels, dtype=x.dtype, device=x.device)
        return Conv(f"unchanged {channels}", self._same[key], x.new_zeros(0))


class GraphOnePassOps(OnePassOps):
    """The same as nodes of a graph, which keep nothing: ``ddfm_fast.kernels.operators``."""

    def __init__(self):
        from ddfm_fast.kernels import operators

        super().__init__(operators)

    def for_graphs(self) -> OnePassOps:
        return self

    def _packed(self, conv: Conv):
        return conv.weight

    def _unchanging(self, x: Tensor) -> Conv:
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return Conv(f"unchanged {x.shape[1]}", eye, x.new_zeros(0))
