"""``layer.cpp``: a faster version of a layer of ``priors.ops.plain.PlainOps``.

A layer is a convolution with all that surrounds it, on a CPU, in float32 or bfloat16. With
bfloat16, activations and products of pairs use it; sums, norms and transforms are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddfm_fast.runtime import threads

from . import memory
from .build import LAYER_CALL, LAYER_FIXED, library
from .winograd import POINTS, rounded, weights_transform

SLAB = 32
"""channels that Winograd's transform reads together: every input has a multiple of them"""
WINOGRAD_BLOCK = 16, 24
DIRECT_BLOCK = {1: (8, 24), 2: (8, 12)}
"""outputs that a thread computes at once, by stride; their inputs fit a core's cache"""
# indices of struct Layer's first fields, some of which come in pairs
_PARTS, _SKIPS, _SUMS, _NORM, _WEIGHT, _SKIP_WEIGHT = 0, 2, 4, 6, 8, 9
_BIAS, _RESIDUAL, _OUT, _NEW_SUMS, _TEAM, _BLOCKS = 10, 11, 12, 13, 14, 15
_RESAMPLE = {"": 0, "up": 1, "down": 2}
DTYPES = memory.FLOAT, torch.bfloat16
MOST_CHANNELS = 2**20
"""of all inputs and of the result: the code counts a block's channels in 32 bits"""


class Weight(NamedTuple):
    """A convolution's weight as :func:`pack` lays it out."""

    data: Tensor
    channels: int
    out_channels: int
    side: int
    winograd: bool
    dtype: torch.dtype = memory.FLOAT
    """also that of activations"""


def pack(weight: Tensor, winograd: bool, dtype: torch.dtype = memory.FLOAT) -> Weight:
    """Lay a weight [O, I, 3, 3], [O, I, 1, 1] or [O, I] out for :class:`Layer`.

    The layout is [groups, rows, depth, group] in groups of output channels, the last padded with
    zeros; a row is a point or a row of taps. In bfloat16, pairs along the depth lie together, and
    an odd depth is padded with a zero. With ``winograd`` a weight takes four times its size, and
    what bfloat16 rounds away at one point is made up for at the next ones.
    """
    kernel = tuple(weight.shape[2:]) or (1, 1)
    if weight.ndim < 2 or kernel not in ((1, 1), (3, 3)) or winograd and kernel != (3, 3):
        raise ValueError(
            f"weight: shape {tuple(weight.shape)}; expected [O, I, 3, 3], [O, I, 1, 1] or [O, I], "
            "and 3x3 for Winograd's filtering"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype}; expected torch.float32 or torch.bfloat16")
    out_channels, channels = weight.shape[:2]
    taps = weight.detach().to(memory.CPU).reshape(out_channels, channels, -1)
    once = weights_transform()
    transform = torch.kron(once, once).T if winograd else None
    result = Weight(taps, channels, out_channels, kernel[0], winograd, dtype)
    shape = _packed_shape(result)
    packed = torch.zeros(shape, dtype=dtype, device=memory.CPU)
    group, rows = shape[-1] if dtype is memory.FLOAT else shape[-2], shape[1]
    for index in range(len(packed)):  # in pieces: float64 of a large weight takes much memory
        some = taps[index * group : (index + 1) * group]
        some = some if transform is None else some.double() @ transform
        some = some.permute(2, 1, 0).reshape(rows, -1, len(some))  # rows, depth, outputs
        if dtype is memory.FLOAT:
            packed[index, :, :, : some.shape[2]] = some
            continue
        if transform is not None:
            some = rounded(some.flatten(1)).view_as(some)
        if some.shape[1] % 2:
            some = torch.nn.functional.pad(some, (0, 0, 0, 1))
        packed[index, :, :, : some.shape[2]] = some.unflatten(1, (-1, 2)).transpose(2, 3)
    return result._replace(data=packed)


def _packed_shape(weight: Weight) -> tuple[int, ...]:
    group = library().group
    rows = (len(POINTS) + 1) ** 2 if weight.winograd else weight.side
    depth = weight.channels if weight.winograd else weight.side * weight.channels
    groups = -(-weight.out_channels // group)
    if weight.dtype is memory.FLOAT:
        return groups, rows, depth, group
    return groups, rows, -(-depth // 2), group, 2


def suits_winograd(channels: Sequence[int], side: int, stride: int) -> bool:
    """Return whether :class:`Layer` can compute such a convolution by Winograd's filtering."""
    return side == 3 and stride == 1 and not any(c % SLAB for c in channels)


Part = tuple[Tensor, Tensor | None]
"""an input [N, C, H, W], channels_last, and its sums as :class:`Layer` returns them"""


class Layer:
    """One or two inputs side by side, normalized, resampled, convolved; plus bias and residual.

    Prepared for inputs of one size, so that a call costs little beside its arithmetic.

    Args:
        weight: of :func:`pack`, over the channels of all inputs; padded by half its side. Its dtype
            is that of all activations; all else is float32.
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
        _check_weight("shapes", channels, weight)
        _check_options(weight, channels, groups, silu, resample, stride)
        h, w = (_resampled(size, resample) for size in (source_h, source_w))
        pad = weight.side // 2
        out_h, out_w = ((size + 2 * pad - weight.side) // stride + 1 for size in (h, w))
        out = weight.out_channels
        self.shape = n, out, out_h, out_w
        self.strides = out_h * out_w * out, 1, out_w * out, out
        half = 2 if residual_up else 1
        self.residual_shape = n, out, out_h // half, out_w // half
        if min(n, h, w) < 1 or residual_up and (out_h % 2 or out_w % 2):
            raise ValueError(
                f"shapes: {self.shapes}, a result {self.shape}; expected no side of it 0, and even "
                "ones for a residual of half the size"
            )
        self.skip = None if skip is None else skip[0]
        skip_channels: Sequence[int] = () if skip is None else skip[1]
        self.skip_shapes = [(n, c, out_h, out_w) for c in skip_channels]
        if self.skip is not None:
            _check_skip(self.skip, skip_channels, weight)
        block_h, block_w = WINOGRAD_BLOCK if weight.winograd else DIRECT_BLOCK[stride]
        blocks = -(-out_h // block_h) * -(-out_w // block_w)
        self.sums_shape = (n, blocks, 2, out) if want_sums else None
        self.sums_strides = blocks * 2 * out, 2 * out, out, 1
        self._fields = [0] * len(LAYER_CALL.unpack(bytes(LAYER_CALL.size)))
        self._fields[_WEIGHT] = weight.data.data_ptr()
        if self.skip is not None:
            self._fields[_SKIP_WEIGHT] = self.skip.data.data_ptr()
        self._fields[_TEAM] = self.library.team
        self._norms: tuple[Tensor, ...] = ()
        """norms of the last call, which need not be checked again"""
        self._fixed = LAYER_FIXED.pack(
            epsilon, *_two(channels), *_two(skip_channels),
            n, source_h, source_w, h, w, out_h, out_w, out, weight.side, stride, weight.winograd,
            groups or 1, silu, _RESAMPLE[resample], residual_up, block_h, block_w,
            weight.dtype is not memory.FLOAT,
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
        """Run the layer on inputs of the prepared size.

        Args:
            parts: the inputs; with sums if there is a norm.
            bias: [O].
            norm: weight and bias [C] of the norm, whose statistics are combined in float64. Of
                tensors seen in the last call, only the address is read again.
            skip: the inputs of the skip; or
            residual: what to add, like the result or of half its size.
            out: where to write; shares memory with no input, except that it may be the residual
                if that has its size.

        Returns:
            The result [N, O, H', W'], channels_last; and float32 [N, blocks, 2, O]: the sums of
            its values and of their squares over parts of each image, or None.

        Raises:
            ValueError: A tensor is not what the layer was prepared for, or has another dtype,
                is not on the CPU, has gaps, or is not aligned.
            MemoryError: There is no memory for scratch.
        """
        self._check_counts(parts, norm, skip, residual)
        fields = self._fields.copy()
        for i, (x, sums) in enumerate(parts):
            fields[_PARTS + i] = self._plane(x, self.shapes[i])
            if self.groups:
                fields[_SUMS + i], fields[_BLOCKS + i] = self._sums_of(i, sums)
        for i, (x, _) in enumerate(skip):
            fields[_SKIPS + i] = self._plane(x, self.skip_shapes[i])
        if norm is not None:
            fields[_NORM], fields[_NORM + 1] = self._norm_of(norm)
        if bias is not None:
            fields[_BIAS] = _vector("bias", bias, self.shape[1])
        if residual is not None:
            fields[_RESIDUAL] = self._plane(residual, self.residual_shape)
        if out is None:
            out = memory.empty_strided(self.shape, self.strides, self.weight.dtype)
        else:
            self._check_apart(out, parts, skip, norm, bias, residual)
        sums = None
        if self.sums_shape is not None:
            sums = memory.empty_strided(self.sums_shape, self.sums_strides)
            fields[_NEW_SUMS] = sums.data_ptr()
        fields[_OUT] = out.data_ptr()
        call = LAYER_CALL.pack(*fields) + self._fixed
        if self.library.layer(call, threads.count()):
            raise MemoryError("not enough memory for a layer of the prior")
        return out, sums

    def _plane(self, x: Tensor, shape: tuple[int, ...]) -> int:
        """Find the address of an activation that the code can read."""
        dtype = self.weight.dtype
        right = x.shape == shape and x.dtype is dtype and x.is_cpu
        if not (right and x.is_contiguous(memory_format=torch.channels_last)):
            raise memory.refusal("tensor", x, shape, "channels_last", dtype)
        return memory.address("tensor", x)

    def _check_counts(self, parts, norm, skip, residual) -> None:
        """Raise ValueError for too many or too few tensors."""
        if self.groups and norm is None:
            raise ValueError("norm: None, prepared for a norm")
        if norm is not None and not self.groups:
            raise ValueError("norm: given, prepared for none")
        if len(parts) != len(self.shapes) or len(skip) != len(self.skip_shapes):
            expected = f"{self.shapes} and {self.skip_shapes}"
            raise ValueError(f"parts, skip: {len(parts)} and {len(skip)}, prepared for {expected}")
        if residual is not None and self.skip is not None:
            raise ValueError("residual: given, prepared for a skip, which takes its place")

    def _sums_of(self, i: int, sums: Tensor | None) -> tuple[int, int]:
        """Find the address of an input's sums, and how many blocks they cover."""
        if sums is None:
            raise ValueError("parts: without the sums that a norm needs")
        n, channels = self.shapes[i][:2]
        shape = sums.shape
        right = len(shape) == 4 and shape[1] > 0 and shape == (n, shape[1], 2, channels)
        if not (right and sums.dtype is memory.FLOAT and sums.is_cpu and sums.is_contiguous()):
            raise memory.refusal("sums", sums, (n, "blocks", 2, channels), "without gaps")
        return memory.address("sums", sums), shape[1]

    def _norm_of(self, norm: tuple[Tensor, Tensor]) -> tuple[int, int]:
        """Find the addresses of a norm's weight and bias, which are checked when first seen."""
        scale, shift = norm
        if not (self._norms and scale is self._norms[0] and shift is self._norms[1]):
            for name, x in (("norm weight", scale), ("norm bias", shift)):
                _vector(name, x, self.weight.channels)
            self._norms = scale, shift
        return scale.data_ptr(), shift.data_ptr()

    def _check_apart(self, out, parts, skip, norm, bias, residual) -> None:
        """Raise ValueError if ``out`` does not fit, or overlaps what other blocks still read."""
        self._plane(out, self.shape)
        others = [*((f"parts[{i}]", x) for i, (x, _) in enumerate(parts)),
                  *((f"skip[{i}]", x) for i, (x, _) in enumerate(skip)),
                  *((f"sums of parts[{i}]", s) for i, (_, s) in enumerate(parts) if s is not None),
                  *(("norm", x) for x in norm or ()), ("weight", self.weight.data)]  # fmt: skip
        others += [] if bias is None else [("bias", bias)]
        others += [] if self.skip is None else [("weight of the skip", self.skip.data)]
        in_place = residual is not None and residual.data_ptr() == out.data_ptr()
        if residual is not None and not (in_place and residual.shape == out.shape):
            others.append(("residual", residual))
        memory.check_apart(out, others)


def _vector(name: str, x: Tensor, count: int) -> int:
    right = x.shape == (count,) and x.dtype is memory.FLOAT and x.is_cpu
    if not (right and x.is_contiguous()):
        raise memory.refusal(name, x, (count,), "without gaps")
    return memory.address(name, x)


def _check_weight(name: str, channels: Sequence[int], weight: Weight) -> None:
    if not 1 <= len(channels) <= 2 or sum(channels) != weight.channels or min(channels) < 1:
        raise ValueError(
            f"{name}: {list(channels)} channels, expected one or two inputs with "
            f"{weight.channels} together"
        )
    if max(weight.channels, weight.out_channels) > MOST_CHANNELS:
        raise ValueError(f"weight: {weight[1:3]} channels, expected at most {MOST_CHANNELS}")
    memory.check("packed weight", weight.data, _packed_shape(weight), weight.dtype)


def _check_skip(skip: Weight, channels: Sequence[int], weight: Weight) -> None:
    _check_weight("skip", channels, skip)
    expected = 1, weight.out_channels, weight.dtype
    if (skip.side, skip.out_channels, skip.dtype) != expected:
        raise ValueError(
            f"skip: of {skip[1:]}; expected 1x1, to {weight.out_channels} channels, {weight.dtype}"
        )
    if skip.dtype is not memory.FLOAT and len(channels) > 1 and channels[0] % 2:
        raise ValueError(f"skip: {channels[0]} channels first; expected an even number")


def _check_options(weight, channels, groups: int, silu: bool, resample: str, stride: int) -> None:
    if groups < 0 or groups and weight.channels % groups:
        raise ValueError(f"groups: {groups} of {weight.channels} channels, expected a divisor")
    if silu and not groups:
        raise ValueError("silu: True without groups, expected a norm before it")
    if resample not in _RESAMPLE or stride not in DIRECT_BLOCK:
        raise ValueError(
            f"resample, stride: {resample!r}, {stride}; expected up, down, '' and 1, 2"
        )
    if weight.side not in (1, 3):
        raise ValueError(f"weight: side {weight.side}, expected 1 or 3")
    if weight.winograd and not suits_winograd(channels, weight.side, stride):
        raise ValueError(
            f"weight: packed for Winograd's filtering, not for side {weight.side}, stride {stride} "
            f"and {list(channels)} channels; expected 3, 1 and multiples of {SLAB}"
        )


def _two(values: Sequence[int]) -> tuple[int, int]:
    first, second, *_ = *values, 0, 0
    return first, second


def _resampled(size: int, resample: str) -> int:
    return 2 * size if resample == "up" else size // 2 if resample == "down" else size
