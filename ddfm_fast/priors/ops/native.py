"""The operations on a CPU in float32 and bfloat16 by our C++, ``ddfm_fast.kernels.cpu``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfm_fast.kernels.cpu import edges
from ddfm_fast.kernels.cpu.attention import attention
from ddfm_fast.kernels.cpu.build import library, status
from ddfm_fast.kernels.cpu.layer import DTYPES, Layer, Weight, pack, suits_winograd
from ddfm_fast.kernels.cpu.operators import cpu_attention, cpu_layer
from ddfm_fast.runtime.memory import free_host_bytes

from ..precision import cpu_has
from ..timesteps import Mix
from ..unet import NORM_EPS
from ..unet_config import GROUPS
from .base import Conv, Feature, Norm, Ops, Waiting, double, rows_of


class NativeOps(Ops[Waiting]):
    """The same on a CPU, each layer in one pass, by ``ddfm_fast.kernels.cpu``.

    Norms, SiLU and resampling happen as a convolution reads; biases, residuals and skips, and the
    sums for the next norm, as it writes. Weights are laid out when first used, 3x3 ones in four
    times their size, so a large network needs the memory for it.
    """

    WEIGHT_BYTES = 16
    """most bytes of memory per weight"""
    SMALL_BYTES = 2**30
    """bytes that may be taken whatever is free"""
    SHARE = 0.5
    """share of the free memory that may be taken beyond that"""
    MOST_LAYERS = 2**13
    """prepared layers that are kept, of about a kilobyte: one for each convolution and size"""

    def __init__(self):
        self._weights: dict[tuple, Weight] = {}
        self._layers: dict[tuple, Layer] = {}

    @staticmethod
    def available(dtype: torch.dtype = torch.float32) -> bool:
        """Return whether these can run here; bfloat16 needs an instruction that multiplies pairs.

        The first call compiles them.
        """
        if dtype not in DTYPES or status() is not None:
            return False
        return dtype == torch.float32 or (cpu_has(dtype) and library().pairs)

    @classmethod
    def fits(cls, weights: int) -> bool:
        """Return whether there is memory to lay out so many weights."""
        need, free = cls.WEIGHT_BYTES * weights, free_host_bytes()
        return need <= cls.SMALL_BYTES or (free is not None and need <= cls.SHARE * free)

    def for_graphs(self) -> NativeOps:
        return GraphNativeOps()

    def gathered(self, x: Tensor, side: int, dtype: torch.dtype) -> Tensor:
        if x.dtype != torch.float32 or side not in edges.SIDES:
            return super().gathered(x, side, dtype)
        return edges.gather(x.contiguous(), side, dtype)

    def spread(self, out: Tensor, side: int, x: Tensor, mix: Mix | None) -> Tensor:
        ours = x.dtype == torch.float32 and side in edges.SIDES
        if mix is None or not ours or out.shape[1] != x.shape[1] * side**2:
            return super().spread(out, side, x, mix)
        return edges.spread(out, side, x.contiguous(), *(factor.contiguous() for factor in mix))

    def first(self, x: Tensor, conv: Conv) -> Feature:
        return self._run([Feature(x)], conv, {}, bias=conv.bias)

    def enter(
        self, parts: Sequence[Feature], norm: Norm, resample: str, _conv: Conv
    ) -> tuple[Waiting, tuple[Feature, ...]]:
        waiting = Waiting(parts, norm, resample)
        if resample != "down":
            return waiting, tuple(parts)
        return waiting, tuple(Feature(F.avg_pool2d(p.data, 2)) for p in parts)

    def middle(self, h: Waiting, conv: Conv, bias: Tensor, norm: Norm) -> Waiting:
        return Waiting((self._after_norm(h, conv, bias),), norm)

    def leave(
        self, h: Waiting, conv: Conv, residual: Sequence[Feature], skip: Conv | None, up: bool
    ) -> Feature:
        if skip is None:
            (x,) = residual
            return self._after_norm(h, conv, conv.bias, up=up, residual=x.data)
        if up:
            residual = [Feature(double(x.data)) for x in residual]
        return self._after_norm(h, conv, conv.bias, skip_conv=skip, skip=residual)

    def queries(self, feature: Feature, norm: Norm, conv: Conv) -> Tensor:
        h = Waiting((feature,), norm)
        return rows_of(self._after_norm(h, conv, conv.bias, silu=False, want_sums=False).data)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q.float(), k.float(), v.float()).to(q.dtype)

    def project(self, h: Tensor, conv: Conv, residual: Feature) -> Feature:
        n, c, height, width = residual.data.shape
        h = h.contiguous().view(n, height, width, c).permute(0, 3, 1, 2)
        return self._run([Feature(h)], conv, {}, bias=conv.bias, residual=residual.data)

    def resize(self, feature: Feature, conv: Conv | None, direction: str) -> Feature:
        if conv is None:
            x = feature.data
            x = F.avg_pool2d(x, 2) if direction == "down" else double(x)
            y = x.float()
            sums = torch.stack([y.sum((2, 3)), (y * y).sum((2, 3))], 1)
            return Feature(x, sums[:, None].contiguous())
        options: dict[str, Any] = {"stride": 2} if direction == "down" else {"resample": "up"}
        return self._run([feature], conv, options, bias=conv.bias)

    def last(self, feature: Feature, norm: Norm, conv: Conv) -> Tensor:
        return self._after_norm(Waiting((feature,), norm), conv, conv.bias, want_sums=False).data

    def _after_norm(
        self,
        h: Waiting,
        conv: Conv,
        bias: Tensor,
        *,
        silu: bool = True,
        want_sums: bool = True,
        up: bool = False,
        skip_conv: Conv | None = None,
        skip: Sequence[Feature] = (),
        residual: Tensor | None = None,
    ) -> Feature:
        options: dict[str, Any] = dict(
            groups=GROUPS, epsilon=NORM_EPS, silu=silu, resample=h.resample, want_sums=want_sums,
            residual_up=up,
        )  # fmt: skip
        norm = h.norm[1:]
        if skip_conv is not None:
            options["skip"] = skip_conv, skip
        return self._run(h.parts, conv, options, bias=bias, norm=norm, skip=skip, residual=residual)

    def _run(self, parts: Sequence[Feature], conv: Conv, options: dict, **tensors) -> Feature:
        """Run a layer, prepared when its convolution first sees a size; options never change."""
        key = conv.name, len(conv.weight), *parts[0].data.shape
        layer = self._layers.get(key)
        if layer is None:
            layer = self._prepared([p.data.shape for p in parts], conv, **options)
            if len(self._layers) >= self.MOST_LAYERS:
                self._layers.clear()
            self._layers[key] = layer
        return Feature(*layer(parts, **tensors))

    def _prepared(self, shapes: list, conv: Conv, skip=None, **options) -> Layer:
        if skip is not None:
            skip_conv, skip_parts = skip
            channels = [p.data.shape[1] for p in skip_parts]
            options["skip"] = self._weight(skip_conv, channels, 1), channels
        weight = self._weight(conv, [s[1] for s in shapes], options.get("stride", 1))
        return Layer(weight, shapes, **options)

    def _weight(self, conv: Conv, channels: list[int], stride: int) -> Weight:
        side = conv.weight.shape[-1] if conv.weight.ndim == 4 else 1
        winograd = suits_winograd(channels, side, stride)
        key = conv.name, len(conv.weight), winograd
        found = self._weights.get(key)
        if found is None:
            found = pack(conv.weight, winograd, conv.weight.dtype)
            if found.dtype != torch.float32 and not found.data.isfinite().all():
                raise ValueError(
                    f"dtype: {found.dtype} cannot hold the weights of {conv.name}, which are laid "
                    "out for it; use float32"
                )
            self._weights[key] = found
        return found


class GraphNativeOps(NativeOps):
    """The same as nodes of a graph: ``ddfm_fast.kernels.cpu.operators``."""

    def for_graphs(self) -> NativeOps:
        return self

    def gathered(self, x: Tensor, side: int, dtype: torch.dtype) -> Tensor:
        return Ops.gathered(self, x, side, dtype)

    def spread(self, out: Tensor, side: int, x: Tensor, mix: Mix | None) -> Tensor:
        return Ops.spread(self, out, side, x, mix)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return cpu_attention(q.float(), k.float(), v.float()).to(q.dtype)

    def _run(
        self,
        parts: Sequence[Feature],
        conv: Conv,
        options: dict,
        **tensors,
    ) -> Feature:
        want_sums, norm = options.get("want_sums", True), tensors.get("norm") or ()
        y, sums = cpu_layer(
            [part.data for part in parts],
            [part.moments for part in parts] if norm else [],
            conv.weight,
            tensors.get("bias"),
            list(norm),
            options["skip"][0].weight if "skip" in options else None,
            [part.data for part in tensors.get("skip", ())],
            tensors.get("residual"),
            options.get("groups", 0),
            options.get("epsilon", 0.0),
            options.get("silu", False),
            options.get("resample", ""),
            options.get("stride", 1),
            options.get("residual_up", False),
            want_sums,
        )
        return Feature(y, sums if want_sums else None)
