"""``layer.cpp``: a faster version of a layer of ``priors.ops.plain.PlainOps``.

A layer is a convolution with all that surrounds it, float32 on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .build import LAYER_CALL, LAYER_FIXED, library

SLAB = 32
"""channels that Winograd's transform reads together: every input has a multiple of them"""
WINOGRAD_BLOCK = 16, 24
DIRECT_BLOCK = {1: (8, 24), 2: (8, 12)}
"""outputs that a thread does at once, by stride; their inputs fit a core's cache"""
_POINTS = 0.0, 0.75, -0.75, 1.5, -1.5
"""of Winograd's filtering, with infinity; as in winograd.h"""
_RESAMPLE = {"": 0, "up": 1, "down": 2}


class Weight(NamedTuple):
    """A convolution's weight as :func:`pack` lays it out."""

    data: Tensor
    channels: int
    out_channels: int
    side: int
    winograd: bool


def _transform() -> Tensor:
    """Make G of F(4x4, 3x3) [6, 3]: a filter's values at the points; its last tap at infinity."""
    rows = []
    for p in _POINTS:
        scale = 1.0
        for q in _POINTS:
            scale *= 1.0 if p == q else p - q
        rows.append([1 / scale, p / scale, p * p / scale])
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


def pack(weight: Tensor, winograd: bool) -> Weight:
    """Lay a weight [O, I, 3, 3], [O, I, 1, 1] or [O, I] out for :class:`Layer`.

    In groups of output channels [groups, taps or points, I, group], the last filled with zeros.
    With ``winograd`` a weight takes four times its size.
    """
    out_channels, channels = weight.shape[:2]
    side = weight.shape[2] if weight.ndim == 4 else 1
    taps = weight.detach().reshape(out_channels, channels, side * side)
    transform = torch.kron(_transform(), _transform()).T if winograd else None
    group, points = library().group, len(_transform()) ** 2 if winograd else side * side
    packed = torch.zeros(-(-out_channels // group), points, channels, group)
    for index in range(len(packed)):  # in pieces: float64 of a large weight takes much memory
        rows = taps[index * group : (index + 1) * group]
        rows = rows if transform is None else rows.double() @ transform
        packed[index, :, :, : len(rows)] = rows.permute(2, 1, 0)
    return Weight(packed, channels, out_channels, side, winograd)


def suits_winograd(channels: Sequence[int], side: int, stride: int) -> bool:
    """Say whether :class:`Layer` can do such a convolution by Winograd's filtering."""
    return side == 3 and stride == 1 and not any(c % SLAB for c in channels)


Part = tuple[Tensor, Tensor | None]
"""an input [N, C, H, W], float32 and channels_last, and its sums as :class:`Layer` returns them"""


class Layer:
    """One or two inputs side by side, normalized, resampled, convolved; plus bias and residual.

    Prepared for inputs of one size, so that a call costs little beside its arithmetic.

    Args:
        weight: of :func:`pack`, over the channels of all inputs; padded by half its side.
        shapes: of the inputs, one or two of [N, C, H, W] that differ in C at most.
        groups: of a group norm of the inputs, with ``epsilon``; 0: no norm.
        silu: after the norm, and only with one.
        resample: then "up" doubles by repetition, "down" halves by 2x2 means, "" leaves as is.
        stride: 1 or 2.
        skip: weight of a 1x1 convolution to add, and the channels of its one or two inputs.
        residual_up: the residual, if there is one, has half the result's size, and is doubled.
        want_sums: whether calls return sums.
    """

    def __init__(
        self,
        weight: Weight,
        shapes: Sequence[Sequence[int]],
        *,
        groups: int = 0,
        epsilon: float = 0.0,
        silu: bool = False,
        resample: str = "",
        stride: int = 1,
        skip: tuple[Weight, Sequence[int]] | None = None,
        residual_up: bool = False,
        want_sums: bool = True,
    ):
        self.library, self.weight, self.groups = library(), weight, groups
        self.shapes = [tuple(shape) for shape in shapes]
        n, _, source_h, source_w = self.shapes[0]
        channels = [shape[1] for shape in self.shapes]
        if any(shape != (n, shape[1], source_h, source_w) for shape in self.shapes):
            raise ValueError(f"shapes: {self.shapes}, expected them to differ in channels only")
        _check_channels("shapes", channels, weight)
        if groups and weight.channels % groups:
            raise ValueError(f"groups: {groups} of {weight.channels} channels, expected a divisor")
        h, w = (_resampled(size, resample) for size in (source_h, source_w))
        pad = weight.side // 2
        out_h, out_w = ((size + 2 * pad - weight.side) // stride + 1 for size in (h, w))
        out = weight.out_channels
        self.shape = n, out, out_h, out_w
        self.strides = out_h * out_w * out, 1, out_w * out, out
        half = 2 if residual_up else 1
        self.residual_shape = n, out, out_h // half, out_w // half
        self.skip = None if skip is None else skip[0]
        skip_channels: Sequence[int] = () if skip is None else skip[1]
        self.skip_shapes = [(n, c, out_h, out_w) for c in skip_channels]
        if self.skip is not None:
            _check_channels("skip", skip_channels, self.skip)
        block_h, block_w = WINOGRAD_BLOCK if weight.winograd else DIRECT_BLOCK[stride]
        blocks = -(-out_h // block_h) * -(-out_w // block_w)
        self.sums_shape = (n, blocks, 2, out) if want_sums else None
        self._fixed = LAYER_FIXED.pack(
            epsilon, *_two(channels), *_two(skip_channels),
            n, source_h, source_w, h, w, out_h, out_w, out, weight.side, stride, weight.winograd,
            groups or 1, silu, _RESAMPLE[resample], residual_up, block_h, block_w,
        )  # fmt: skip

    def __call__(
        self,
        parts: Sequence[Part],
        *,
        bias: Tensor | None = None,
        norm: tuple[Tensor, Tensor] | None = None,
        skip: Sequence[Part] = (),
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Part:
        """Run the layer on such inputs.

        Args:
            parts: the inputs; with sums where there is a norm.
            bias: [O].
            norm: weight and bias [C] of the norm, whose statistics are combined in float64.
            skip: the inputs of the skip; or
            residual: to add, like the result or of half its size.
            out: to write to; may be the residual.

        Returns:
            The result [N, O, H', W'], channels_last, and float32 [N, blocks, 2, O]: the sums of
            its values and of their squares over parts of each image, or None.
        """
        if out is None:
            out = torch.empty_strided(self.shape, self.strides, dtype=torch.float32)
        sums = None if self.sums_shape is None else torch.empty(self.sums_shape)
        self._check(parts, norm, skip, residual, out)
        norm_weight, norm_bias = norm if self.groups and norm else (None, None)
        data, part_sums, blocks = [], [], []
        for x, s in parts:
            data.append(x.data_ptr())
            part_sums.append(_address(s) if self.groups else 0)
            blocks.append(s.shape[1] if self.groups and s is not None else 0)
        call = LAYER_CALL.pack(
            *_two(data), *_two([x.data_ptr() for x, _ in skip]), *_two(part_sums),
            _address(norm_weight), _address(norm_bias), self.weight.data.data_ptr(),
            0 if self.skip is None else self.skip.data.data_ptr(), _address(bias),
            _address(residual), out.data_ptr(), _address(sums), self.library.team, *_two(blocks),
        )  # fmt: skip
        if self.library.layer(call + self._fixed, torch.get_num_threads()):
            raise MemoryError("not enough memory for a layer of the prior")
        return out, sums

    def _check(self, parts, norm, skip, residual, out) -> None:
        """Raise ValueError for what the code would read wrongly, or outside of a tensor."""
        if self.groups and norm is None:
            raise ValueError("norm: None, prepared for a norm")
        if self.groups and any(sums is None for _, sums in parts):
            raise ValueError("parts: without the sums that a norm needs")
        expected = [*self.shapes, *self.skip_shapes, self.shape]
        tensors = [*(x for x, _ in parts), *(x for x, _ in skip), out]
        if residual is not None:
            expected.append(self.residual_shape)
            tensors.append(residual)
        if len(tensors) != len(expected):
            raise ValueError(f"parts, skip: {len(parts)} and {len(skip)}, prepared for {expected}")
        for x, shape in zip(tensors, expected, strict=True):
            right = x.shape == shape and x.dtype is torch.float32 and x.is_cpu
            if not (right and x.is_contiguous(memory_format=torch.channels_last)):
                raise ValueError(
                    f"tensor of shape {tuple(x.shape)}, {x.dtype}, {x.device}, strides "
                    f"{x.stride()}; expected {shape}, float32 on the CPU, channels_last"
                )


def _check_channels(name: str, channels: Sequence[int], weight: Weight) -> None:
    if not 1 <= len(channels) <= 2 or sum(channels) != weight.channels:
        raise ValueError(
            f"{name}: {list(channels)} channels, expected one or two inputs with "
            f"{weight.channels} together"
        )


def _two(values: Sequence[int]) -> tuple[int, int]:
    first, second, *_ = *values, 0, 0
    return first, second


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _resampled(size: int, resample: str) -> int:
    return 2 * size if resample == "up" else size // 2 if resample == "down" else size
