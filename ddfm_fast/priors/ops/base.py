"""The operations of the network's engine: what each computes.

Activations are channels_last, in the dtype of the weights; parameters of norms and biases of
convolutions are float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import convolutions_in_tf32
from ..timesteps import Mix, mixed

CONV_ELEMENTS = 2**31 - 1
"""most elements of an image before and after a convolution on CUDA: cuDNN's offsets are 32-bit"""

Hidden = TypeVar("Hidden")
"""what lies between the two convolutions of a block: a tensor, or one that is yet to be made"""


class Feature(NamedTuple):
    """An activation [N, C, H, W] and its channels' moments, if operations keep them.

    ``FusedOps`` and ``NativeOps`` do, each in its own form.
    """

    data: Tensor
    moments: Tensor | None = None


class Conv(NamedTuple):
    """A convolution that keeps the size, halves it (``resize``), or doubles it by ``up_kernel``."""

    name: str
    """its key in the state dict, for reports"""
    weight: Tensor
    """[O, I, 3, 3], [O, I, 1, 1] or [O, I]"""
    bias: Tensor
    """float32 [O]"""
    up_kernel: Tensor | None = None
    """``unet.upsampling_kernel`` of the weight, if doubling is folded into it"""


class Norm(NamedTuple):
    """Scale and shift of a GroupNorm over 32 groups, float32 [C]."""

    name: str
    weight: Tensor
    bias: Tensor


def fits_layer(channels: int, outs: int) -> bool:
    """Return whether ``ddfm_fast.kernels.conv.layer`` takes these numbers of channels."""
    return (channels <= 16 or channels % 32 == 0) and (outs <= 16 or outs % 32 == 0)


class Waiting(NamedTuple):
    """What a convolution that normalizes by itself reads: SiLU(norm(parts)), resampled."""

    parts: Sequence[Feature]
    norm: Norm
    resample: str = ""


def rows_of(x: Tensor) -> Tensor:
    """View [N, C, H, W] in channels_last as a matrix [N H W, C]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend over T by softmax; views and result [N, T, heads, channels of a head]."""
    # views of [N, heads, T, channels]: nothing is moved
    q, k, v = (a.transpose(1, 2) for a in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def double(x: Tensor) -> Tensor:
    """Upsample to twice the size by nearest neighbors."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def convolve(x: Tensor, conv: Conv, bias: Tensor | None) -> Tensor:
    """Convolve with ``bias`` (cast to x's dtype), in strips if it would be too large."""
    bias = None if bias is None else bias.to(x.dtype)
    if conv.up_kernel is not None:
        return conv2d(x, conv.up_kernel, bias, stride=2, padding=(1, 1), transposed=True)
    padding = conv.weight.shape[-1] // 2
    widest = max(conv.weight.shape[:2])
    if x.device.type == "cuda" and widest * x.shape[2] * x.shape[3] > CONV_ELEMENTS:
        return convolve_in_strips(x, conv.weight, bias)
    return conv2d(x, conv.weight, bias, padding=(padding, padding))


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    transposed: bool = False,
) -> Tensor:
    """Convolve by PyTorch, on CUDA in the precision of :func:`..precision.float32_products`."""
    by_setting = x.device.type != "cuda" or torch.compiler.is_compiling()
    tf32 = None if by_setting else convolutions_in_tf32()
    if tf32 is None:
        function = F.conv_transpose2d if transposed else F.conv2d
        return function(x, weight, bias, stride=stride, padding=padding)
    cudnn = torch.backends.cudnn
    return torch._convolution(
        x, weight, bias, [stride, stride], padding, [1, 1], transposed, [0, 0], 1,
        cudnn.benchmark, cudnn.deterministic or torch.are_deterministic_algorithms_enabled(),
        cudnn.enabled, tf32,
    )  # fmt: skip


def convolve_in_strips(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``conv2d(x, weight, bias)`` at the same size, image by image in strips of rows.

    No strip holds more than ``CONV_ELEMENTS`` elements before or after it.
    """
    halo = weight.shape[-1] // 2
    n, _, height, width = x.shape
    out = torch.empty(
        (n, len(weight), height, width), dtype=x.dtype, device=x.device,
        memory_format=torch.channels_last,
    )  # fmt: skip
    strip = max(CONV_ELEMENTS // (max(weight.shape[:2]) * width) - 2 * halo, 1)
    for index in range(n):
        for top in range(0, height, strip):
            bottom = min(top + strip, height)
            above, below = max(top - halo, 0), min(bottom + halo, height)
            part = x[index : index + 1, :, above:below]
            # rows of padding only at the image's own border; the others come from the neighbors
            missing = halo - (top - above), halo - (below - bottom)
            part = F.pad(part, (0, 0, *missing)) if any(missing) else part
            part = conv2d(part, weight, bias, padding=(0, halo))
            out[index : index + 1, :, top:bottom] = part
    return out


class Ops(ABC, Generic[Hidden]):
    """What the engine calls; ``plain.PlainOps`` is the twin of all others."""

    def for_graphs(self) -> Ops[Any]:
        """Return what replaces them while torch.compile or torch.export traces a forward pass."""
        return self

    def gathered(self, x: Tensor, side: int, dtype: torch.dtype) -> Tensor:
        """Return x [N, C, H, W] with squares of ``side`` pixels as channels, channels_last."""
        x = x.to(dtype)
        x = F.pixel_unshuffle(x, side) if side > 1 else x
        return x.contiguous(memory_format=torch.channels_last)

    def spread(self, out: Tensor, side: int, x: Tensor, mix: Mix | None) -> Tensor:
        """Turn the network's output back into pixels, mixed with x_t if ``mix`` is given."""
        out = F.pixel_shuffle(out, side) if side > 1 else out
        return out if mix is None else mixed(x, out, mix)

    @abstractmethod
    def first(self, x: Tensor, conv: Conv) -> Feature:
        """Convolve the input."""

    @abstractmethod
    def enter(
        self, parts: Sequence[Feature], norm: Norm, resample: str, conv: Conv
    ) -> tuple[Hidden, tuple[Feature, ...]]:
        """Return (SiLU(norm(x)) resampled, x for the residual); x is the parts side by side.

        "down" halves both by 2x2 means. "up" leaves x small, for :meth:`leave` to double, and
        doubles the other unless ``conv``, which comes next, does.
        """

    @abstractmethod
    def middle(self, h: Hidden, conv: Conv, bias: Tensor, norm: Norm) -> Hidden:
        """Return SiLU(norm(conv(h) + bias))."""

    @abstractmethod
    def leave(
        self, h: Hidden, conv: Conv, residual: Sequence[Feature], skip: Conv | None, up: bool
    ) -> Feature:
        """Return conv(h) + residual; the residual doubled with ``up``, or through the 1x1 ``skip``.

        The bias of ``skip`` is in that of ``conv``.
        """

    @abstractmethod
    def queries(self, feature: Feature, norm: Norm, conv: Conv) -> Tensor:
        """Return norm(x) times the matrix of ``conv``, plus its bias: [N H W, O]."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend over T by softmax; views and result [N, T, heads, channels of a head]."""

    @abstractmethod
    def project(self, h: Tensor, conv: Conv, residual: Feature) -> Feature:
        """Return h [N H W, C] times the matrix of ``conv``, plus its bias and the residual."""

    @abstractmethod
    def resize(self, feature: Feature, conv: Conv | None, direction: str) -> Feature:
        """Resample only: "up" and then a convolution, or a strided one, or 2x2 means."""

    @abstractmethod
    def last(self, feature: Feature, norm: Norm, conv: Conv) -> Tensor:
        """Return conv(SiLU(norm(x)))."""
