"""The operations on a CPU by oneDNN's fused operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..precision import cpu_has
from .base import Conv, Feature, convolve, double
from .plain import PlainOps


class OneDnnOps(PlainOps):
    """The same on a CPU with weights laid out once for oneDNN, and residuals added inside it.

    Uses the operators that PyTorch's own compiler uses. The layout that oneDNN wants depends on the
    input's size, and it converts any other layout on every call. So weights are laid out when a
    convolution first sees a size, and the copies for the last ``SIZES`` sizes are kept. That takes
    memory, so this is for small networks.
    """

    MOST_WEIGHTS = 2**26
    SIZES = 2
    SMALL = 2**13
    """float32 elements up to which PyTorch's own loops run: a call of oneDNN costs some 50 us"""

    def __init__(self):
        self._packed: dict[tuple[str, int], dict[torch.Size, tuple[Tensor, Tensor]]] = {}

    @staticmethod
    def available(dtype: torch.dtype = torch.float32) -> bool:
        """Return whether this PyTorch has oneDNN's fused operators and this CPU has the dtype."""
        names = "_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight"
        return (
            torch.backends.mkldnn.is_available()
            and all(hasattr(torch.ops.mkldnn, name) for name in names)
            and cpu_has(dtype)
        )

    def for_graphs(self) -> PlainOps:
        """See ``Ops``; a graph cannot hold weights that oneDNN has laid out."""
        return PlainOps()

    def leave(
        self, h: Tensor, conv: Conv, residual: Sequence[Feature], skip: Conv | None, up: bool
    ) -> Feature:
        if self._small(h):
            return super().leave(h, conv, residual, skip, up)
        x = double(residual[0].data) if up else residual[0].data
        weight, bias = self._weights(conv, h)
        pad = [conv.weight.shape[-1] // 2] * 2
        rest: tuple[Any, ...] = (weight, bias, pad, [1, 1], [1, 1], 1, "add", None, None, [], None)
        if skip is None and not up:  # x is the block's input, which others may read again
            return Feature(torch.ops.mkldnn._convolution_pointwise.binary(h, x, *rest))
        x = self.convolve(x, skip, None) if skip is not None else x
        return Feature(torch.ops.mkldnn._convolution_pointwise_.binary(x, h, *rest))

    def convolve(self, x: Tensor, conv: Conv, bias: Tensor | None) -> Tensor:
        if conv.up_kernel is not None or self._small(x):
            return convolve(x, conv, bias)
        weight, own = self._weights(conv, x)
        if bias is not None:
            bias = own if bias is conv.bias else bias.to(x.dtype)
        pad = [conv.weight.shape[-1] // 2] * 2
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, pad, [1, 1], [1, 1], 1, "none", [], ""
        )

    def halve(self, x: Tensor, conv: Conv) -> Tensor:
        if self._small(x):
            return super().halve(x, conv)
        weight, bias = self._weights(conv, x, stride=2)
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, [1, 1], [2, 2], [1, 1], 1, "none", [], ""
        )

    def _small(self, x: Tensor) -> bool:
        return x.dtype == torch.float32 and x.numel() <= self.SMALL

    def _weights(self, conv: Conv, x: Tensor, stride: int = 1) -> tuple[Tensor, Tensor]:
        """Lay the weight out for inputs of x's size; the bias in x's dtype."""
        sizes = self._packed.setdefault((conv.name, len(conv.weight)), {})
        found = sizes.get(x.shape)
        if found is None:
            pad = [conv.weight.shape[-1] // 2] * 2
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                conv.weight, pad, [stride] * 2, [1, 1], 1, list(x.shape)
            )
            found = weight, conv.bias.to(x.dtype)
            for oldest in list(sizes)[: max(len(sizes) + 1 - self.SIZES, 0)]:
                sizes.pop(oldest, None)  # another thread may have dropped it
            sizes[x.shape] = found
        return found
