"""The network's fused operations: PyTorch's everywhere, ours on CPUs, Triton's on CUDA.

:class:`PlainOps` says what each operation computes and runs anywhere. The others do the same:
:class:`NativeOps` with the kernels of ``ddfm_fast.kernels.cpu``, for float32; :class:`OneDnnOps`
where these cannot be, and for bfloat16; :class:`FusedOps` with ``ddfm_fast.kernels.group_norm``.
Activations are channels_last, in the dtype of the weights; parameters of norms and biases of
convolutions are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddfm_fast.kernels import cpu
from ddfm_fast.runtime.memory import free_host_bytes

from .precision import cpu_has
from .unet import GROUPS, NORM_EPS

NAIVE_SUMS = 2**13
"""pixels up to which PyTorch's group norm of channels_last maps on a CPU is as exact as float32"""
IN_CACHE = 2**20
"""elements that are read twice before the next ones are"""
CONV_ELEMENTS = 2**31 - 1
"""what an image may hold before and after a convolution on CUDA: offsets in cuDNN are 32-bit"""


class Feature(NamedTuple):
    """An activation [N, C, H, W] and what the operations know of its channels' moments, if they do.

    :class:`FusedOps` and :class:`NativeOps` have their kernels keep them, each in a form of theirs.
    """

    data: Tensor
    moments: Tensor | None = None


class Conv(NamedTuple):
    """A convolution that keeps the size, halves it (``resize``), or doubles it by ``up_kernel``."""

    name: str
    """its key in the state dict, for reports"""
    weight: Tensor
    """[O, I, 3, 3] or [O, I, 1, 1]"""
    bias: Tensor | None
    """float32 [O]"""
    up_kernel: Tensor | None = None
    """``unet.upsampling_kernel`` of the weight, where doubling is folded into it"""


class Norm(NamedTuple):
    """Scale and shift of a GroupNorm over 32 groups, float32 [C]."""

    name: str
    weight: Tensor
    bias: Tensor


def rows_of(x: Tensor) -> Tensor:
    """[N, C, H, W] in channels_last as a matrix [N H W, C], without a copy."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def double(x: Tensor) -> Tensor:
    """Nearest-neighbour upsampling to twice the size."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def convolve(x: Tensor, conv: Conv, bias: Tensor | None) -> Tensor:
    """The convolution with ``bias`` (cast to x's dtype), in strips where it would be too large."""
    bias = None if bias is None else bias.to(x.dtype)
    if conv.up_kernel is not None:
        return F.conv_transpose2d(x, conv.up_kernel, bias, stride=2, padding=1)
    padding = conv.weight.shape[-1] // 2
    widest = max(conv.weight.shape[:2])
    if x.device.type == "cuda" and widest * x.shape[2] * x.shape[3] > CONV_ELEMENTS:
        return convolve_in_strips(x, conv.weight, bias)
    return F.conv2d(x, conv.weight, bias, padding=padding)


def convolve_in_strips(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.conv2d(x, weight, bias)`` that keeps the size, image by image in strips of rows.

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
            # rows of padding only at the image's own border; the others come from the neighbours
            missing = halo - (top - above), halo - (below - bottom)
            part = F.pad(part, (0, 0, *missing)) if any(missing) else part
            part = F.conv2d(part, weight, bias, padding=(0, halo))
            out[index : index + 1, :, top:bottom] = part
    return out


def exact_group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.group_norm`` of float32 channels_last maps, with sums that do not lose digits.

    PyTorch's own adds pixel by pixel in float32 there (2.13, CPU): over 544x960 pixels its error
    is 2e-4, and eps of the embedded prior was wrong by 2.6e-3, ten times as much as in the official
    layout. Here sums are PyTorch's, which cascade, and their combination is in float64, by NumPy,
    whose calls cost a tenth for so few numbers.
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


class PlainOps:
    """Every operation by PyTorch's own functions, on any device: the twin of :class:`FusedOps`."""

    def first(self, x: Tensor, conv: Conv) -> Feature:
        """The convolution of the input."""
        return Feature(self._conv(x, conv, conv.bias))

    def enter(self, parts: Sequence[Feature], norm: Norm, resample: str, conv: Conv):
        """(SiLU(norm(x)) resampled, x for the residual); x is the parts side by side.

        "down" halves both by 2x2 means. "up" leaves x small, for :meth:`leave` to double, and
        doubles the other unless ``conv``, which comes next, does.
        """
        x = parts[0].data if len(parts) == 1 else torch.cat([p.data for p in parts], 1)
        h = self._norm_silu(x, norm)
        if resample == "down":
            return F.avg_pool2d(h, 2), (Feature(F.avg_pool2d(x, 2)),)
        if resample == "up" and conv.up_kernel is None:
            h = double(h)
        return h, (Feature(x),)

    def middle(self, h: Tensor, conv: Conv, bias: Tensor, norm: Norm) -> Tensor:
        """SiLU(norm(conv(h) + bias))."""
        return self._norm_silu(self._conv(h, conv, bias), norm)

    def leave(
        self, h: Tensor, conv: Conv, residual: Sequence[Feature], skip: Conv | None, up: bool
    ) -> Feature:
        """conv(h) + residual, the residual doubled with ``up``, or through the 1x1 ``skip``."""
        (x,) = residual
        x = double(x.data) if up else x.data
        if skip is not None:
            x = self._conv(x, skip, None)
        return Feature(self._conv(h, conv, conv.bias).add_(x))

    def queries(self, feature: Feature, norm: Norm, conv: Conv) -> Tensor:
        """norm(x) times the matrix of ``conv``, plus its bias: [N H W, O]."""
        return F.linear(self._tokens(feature, norm), conv.weight, conv.bias)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention over T; views and result [N, T, heads, channels of a head]."""
        # views of [N, heads, T, channels]: nothing is moved
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def project(self, h: Tensor, conv: Conv, residual: Feature) -> Feature:
        """h [N H W, C] times the matrix of ``conv``, plus its bias and the residual."""
        n, c, height, width = residual.data.shape
        h = F.linear(h, conv.weight, conv.bias.to(h.dtype)).view(n, height, width, c)
        return Feature(h.permute(0, 3, 1, 2).add_(residual.data))

    def resize(self, feature: Feature, conv: Conv | None, direction: str) -> Feature:
        """Layers that only resample: "up" then a convolution, or a strided one, or 2x2 means."""
        x = feature.data
        if direction == "down":
            return Feature(F.avg_pool2d(x, 2) if conv is None else self._halved(x, conv))
        if conv is None:
            return Feature(double(x))
        return Feature(self._conv(x if conv.up_kernel is not None else double(x), conv, conv.bias))

    def last(self, feature: Feature, norm: Norm, conv: Conv) -> Tensor:
        """conv(SiLU(norm(x)))."""
        return self._conv(self._norm_silu(feature.data, norm), conv, conv.bias)

    def _tokens(self, feature: Feature, norm: Norm) -> Tensor:
        """norm(x) as a matrix [N H W, C]."""
        return rows_of(self._norm(feature.data, norm))

    def _conv(self, x: Tensor, conv: Conv, bias: Tensor | None) -> Tensor:
        return convolve(x, conv, bias)

    def _halved(self, x: Tensor, conv: Conv) -> Tensor:
        return F.conv2d(x, conv.weight, conv.bias.to(x.dtype), stride=2, padding=1)

    @staticmethod
    def _norm(x: Tensor, norm: Norm) -> Tensor:
        weight, bias = norm.weight, norm.bias
        naive = x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad
        if naive and x[0, 0].numel() > NAIVE_SUMS and not torch.compiler.is_compiling():
            return exact_group_norm(x, weight, bias)
        if x.device.type != "cpu":  # only there may activations and parameters differ in dtype
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        return F.group_norm(x, GROUPS, weight, bias, NORM_EPS)

    def _norm_silu(self, x: Tensor, norm: Norm) -> Tensor:
        return F.silu(self._norm(x, norm), inplace=True)


class OneDnnOps(PlainOps):
    """The same on a CPU with weights laid out once for oneDNN, and residuals added inside it.

    Uses the operators that PyTorch's own compiler uses. Which layout oneDNN wants depends on the
    input's size, and another one is laid out anew on every call; so weights are laid out when a
    convolution first sees a size, and the copies for the last ``SIZES`` sizes are kept. That takes
    memory, so this is for small networks.
    """

    MOST_WEIGHTS = 2**26
    SIZES = 2
    SMALL = 2**13
    """float32 inputs up to here go by PyTorch's own loops: a call of oneDNN costs some 50 us"""

    def __init__(self):
        self._packed: dict[tuple[str, int], dict[torch.Size, tuple[Tensor, Tensor | None]]] = {}

    @staticmethod
    def available(dtype: torch.dtype = torch.float32) -> bool:
        """Whether this PyTorch has oneDNN's fused operators, and this CPU the arithmetic."""
        names = "_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight"
        return (
            torch.backends.mkldnn.is_available()
            and all(hasattr(torch.ops.mkldnn, name) for name in names)
            and cpu_has(dtype)
        )

    def leave(
        self, h: Tensor, conv: Conv, residual: Sequence[Feature], skip: Conv | None, up: bool
    ) -> Feature:
        if self._small(h):
            return super().leave(h, conv, residual, skip, up)
        (x,) = residual
        x = double(x.data) if up else x.data
        weight, bias = self._weights(conv, h)
        pad = [conv.weight.shape[-1] // 2] * 2
        rest = weight, bias, pad, [1, 1], [1, 1], 1, "add", None, None, [], None
        if skip is None and not up:  # x is the block's input, which others may read again
            return Feature(torch.ops.mkldnn._convolution_pointwise.binary(h, x, *rest))
        x = self._conv(x, skip, None) if skip is not None else x
        return Feature(torch.ops.mkldnn._convolution_pointwise_.binary(x, h, *rest))

    def _conv(self, x: Tensor, conv: Conv, bias: Tensor | None) -> Tensor:
        if conv.up_kernel is not None or self._small(x):
            return convolve(x, conv, bias)
        weight, own = self._weights(conv, x)
        if bias is not conv.bias:
            own = None if bias is None else bias.to(x.dtype)
        pad = [conv.weight.shape[-1] // 2] * 2
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, own, pad, [1, 1], [1, 1], 1, "none", [], ""
        )

    def _halved(self, x: Tensor, conv: Conv) -> Tensor:
        if self._small(x):
            return super()._halved(x, conv)
        weight, bias = self._weights(conv, x, stride=2)
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, [1, 1], [2, 2], [1, 1], 1, "none", [], ""
        )

    def _small(self, x: Tensor) -> bool:
        return x.dtype == torch.float32 and x.numel() <= self.SMALL

    def _weights(self, conv: Conv, x: Tensor, stride: int = 1) -> tuple[Tensor, Tensor | None]:
        """Weight laid out for inputs of x's size, and the bias in x's dtype."""
        sizes = self._packed.setdefault((conv.name, len(conv.weight)), {})
        found = sizes.get(x.shape)
        if found is None:
            pad = [conv.weight.shape[-1] // 2] * 2
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                conv.weight, pad, [stride] * 2, [1, 1], 1, list(x.shape)
            )
            found = weight, None if conv.bias is None else conv.bias.to(x.dtype)
            for oldest in list(sizes)[: max(len(sizes) + 1 - self.SIZES, 0)]:
                sizes.pop(oldest, None)  # another thread may have been here
            sizes[x.shape] = found
        return found


class _Waiting(NamedTuple):
    """What a convolution of :class:`NativeOps` reads: SiLU(norm(parts)), resampled."""

    parts: Sequence[Feature]
    norm: Norm
    resample: str = ""


class NativeOps(PlainOps):
    """The same on a CPU in float32, each layer in one pass, by ``ddfm_fast.kernels.cpu``.

    Norms, SiLU and resampling happen as a convolution reads; biases, residuals and skips, and the
    sums for the next norm, as it writes. Weights are laid out when first used, 3x3 ones in four
    times their size, so a large network has to find memory for it.
    """

    WEIGHT_BYTES = 16
    """of memory for each weight, at most"""
    SMALL_BYTES = 2**30
    """that are taken without asking"""
    SHARE = 0.5
    """of the free memory that may be taken beyond"""
    MOST_LAYERS = 2**13
    """prepared ones that are kept, of a kilobyte or so: one for each convolution and size"""

    def __init__(self):
        self._weights: dict[tuple[str, int, bool], cpu.Weight] = {}
        self._layers: dict[tuple, cpu.Layer] = {}

    @staticmethod
    def available(dtype: torch.dtype = torch.float32) -> bool:
        """Whether they can run here; compiles them the first time."""
        return dtype == torch.float32 and cpu.status() is None

    @classmethod
    def fits(cls, weights: int) -> bool:
        """Whether there is memory to lay out so many weights."""
        need, free = cls.WEIGHT_BYTES * weights, free_host_bytes()
        return need <= cls.SMALL_BYTES or (free is not None and need <= cls.SHARE * free)

    def first(self, x: Tensor, conv: Conv) -> Feature:
        return self._run([Feature(x)], conv, {}, bias=conv.bias)

    def enter(self, parts: Sequence[Feature], norm: Norm, resample: str, conv: Conv):
        waiting = _Waiting(parts, norm, resample)
        if resample != "down":
            return waiting, parts
        return waiting, tuple(Feature(F.avg_pool2d(p.data, 2)) for p in parts)

    def middle(self, h: _Waiting, conv: Conv, bias: Tensor, norm: Norm) -> _Waiting:
        return _Waiting((self._after_norm(h, conv, bias),), norm)

    def leave(
        self, h: _Waiting, conv: Conv, residual: Sequence[Feature], skip: Conv | None, up: bool
    ) -> Feature:
        if skip is None:
            (x,) = residual
            return self._after_norm(h, conv, conv.bias, up=up, residual=x.data)
        if up:
            residual = [Feature(double(x.data)) for x in residual]
        return self._after_norm(h, conv, conv.bias, skip_conv=skip, skip=residual)

    def queries(self, feature: Feature, norm: Norm, conv: Conv) -> Tensor:
        h = _Waiting((feature,), norm)
        return rows_of(self._after_norm(h, conv, conv.bias, silu=False, want_sums=False).data)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return cpu.attention(q, k, v)

    def project(self, h: Tensor, conv: Conv, residual: Feature) -> Feature:
        n, c, height, width = residual.data.shape
        h = h.contiguous().view(n, height, width, c).permute(0, 3, 1, 2)
        return self._run([Feature(h)], conv, {}, bias=conv.bias, residual=residual.data)

    def resize(self, feature: Feature, conv: Conv | None, direction: str) -> Feature:
        if conv is None:
            x = super().resize(feature, None, direction).data
            sums = torch.stack([x.sum((2, 3)), (x * x).sum((2, 3))], 1)
            return Feature(x, sums[:, None].contiguous())
        options = dict(stride=2) if direction == "down" else dict(resample="up")
        return self._run([feature], conv, options, bias=conv.bias)

    def last(self, feature: Feature, norm: Norm, conv: Conv) -> Tensor:
        return self._after_norm(_Waiting((feature,), norm), conv, conv.bias, want_sums=False).data

    def _after_norm(
        self,
        h: _Waiting,
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
        options = dict(
            groups=GROUPS, epsilon=NORM_EPS, silu=silu, resample=h.resample, want_sums=want_sums,
            residual_up=up,
        )  # fmt: skip
        norm = h.norm[1:]
        if skip_conv is not None:
            options["skip"] = skip_conv, skip
        return self._run(h.parts, conv, options, bias=bias, norm=norm, skip=skip, residual=residual)

    def _run(self, parts: Sequence[Feature], conv: Conv, options: dict, **tensors) -> Feature:
        """A layer, prepared when its convolution first sees a size; its options never change."""
        key = conv.name, len(conv.weight), *parts[0].data.shape
        layer = self._layers.get(key)
        if layer is None:
            layer = self._prepared([p.data.shape for p in parts], conv, **options)
            if len(self._layers) >= self.MOST_LAYERS:
                self._layers.clear()
            self._layers[key] = layer
        return Feature(*layer(parts, **tensors))

    def _prepared(self, shapes: list, conv: Conv, skip=None, **options) -> cpu.Layer:
        if skip is not None:
            skip_conv, skip_parts = skip
            channels = [p.data.shape[1] for p in skip_parts]
            options["skip"] = self._weight(skip_conv, channels, 1), channels
        weight = self._weight(conv, [s[1] for s in shapes], options.get("stride", 1))
        return cpu.Layer(weight, shapes, **options)

    def _weight(self, conv: Conv, channels: list[int], stride: int) -> cpu.Weight:
        side = conv.weight.shape[-1] if conv.weight.ndim == 4 else 1
        winograd = cpu.suits_winograd(channels, side, stride)
        key = conv.name, len(conv.weight), winograd
        found = self._weights.get(key)
        if found is None:
            found = self._weights[key] = cpu.pack(conv.weight, winograd)
        return found


class FusedOps(PlainOps):
    """The same by Triton kernels around cuDNN's convolutions and cuBLAS' products.

    Convolutions run without their bias, which joins what reads their output next: the moments of
    the norm, or the sum with the residual. Concatenations are not made: norms take their moments
    and 1x1 convolutions their products part by part. With ``thin_convs`` the first and the last
    convolution are ``ddfm_fast.kernels.conv``'s; whether that is faster no GPU has said yet.
    """

    def __init__(self, kernels=None, *, thin_convs: bool = False):
        if kernels is None:
            from ddfm_fast.kernels import group_norm as kernels
        self.kernels, self.thin_convs = kernels, thin_convs
        self.packed: dict[tuple[str, int], Tensor] = {}

    def first(self, x: Tensor, conv: Conv) -> Feature:
        return self._joined(self._thin(x, conv, None), conv.bias)

    def enter(self, parts: Sequence[Feature], norm: Norm, resample: str, conv: Conv):
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
            (x,) = residual
            return self._joined(h, conv.bias, x.data, up)
        first = 0
        for part in residual:
            width = part.data.shape[1]
            weight = skip.weight[:, first : first + width, 0, 0]
            rows_of(h).addmm_(rows_of(part.data), weight.t())
            first += width
        return self._joined(h, conv.bias)

    def _tokens(self, feature: Feature, norm: Norm) -> Tensor:
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
        """A convolution with few channels on one side."""
        if not self.thin_convs:
            return convolve(x, conv, bias)
        from ddfm_fast.kernels import conv as thin

        pixels, widest = x.shape[2] * x.shape[3], max(conv.weight.shape[:2])
        if not thin.suits(conv.weight) or pixels * widest > thin.MOST_ELEMENTS:
            return convolve(x, conv, bias)
        key = conv.name, len(conv.weight)
        if key not in self.packed:
            self.packed[key] = thin.pack(conv.weight)
        return thin.thin_conv(x, self.packed[key], bias)

    def _joined(self, h: Tensor, bias: Tensor, residual=None, up: bool = False) -> Feature:
        return Feature(h, self.kernels.join_(h, bias, residual, upsample=up))

    def _affine(self, parts: Sequence[Feature], norm: Norm, bias: Tensor | None = None) -> Tensor:
        rows = parts[0].data.shape[2] * parts[0].data.shape[3]
        moments = [p.moments for p in parts]
        return self.kernels.scale_shift(moments, rows, norm.weight, norm.bias, bias)


def ops_for(device: torch.device, weights: int, dtype: torch.dtype = torch.float32) -> PlainOps:
    """What is fastest on a device for a network of so many weights, of what there is."""
    if device.type == "cuda":
        try:
            return FusedOps()
        except ImportError:  # no Triton for this platform: the twin is the path
            return PlainOps()
    if device.type == "cpu" and NativeOps.fits(weights) and NativeOps.available(dtype):
        return NativeOps()
    small = device.type == "cpu" and weights <= OneDnnOps.MOST_WEIGHTS
    return OneDnnOps() if small and OneDnnOps.available(dtype) else PlainOps()
