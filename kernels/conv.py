"""A layer of the prior in one launch: a faster version of ``priors.ops.plain.PlainOps``.

The convolution is an implicit matrix product. What comes before it (group norm, SiLU, resampling,
two inputs side by side) happens as it reads, and what comes after it (bias with the shift of the
timestep, residual or 1x1 skip, moments for the next norm) as it writes.

An image has few moments (``moments``), so the next layer merges them as it starts, without a launch
of its own. There are no atomics, and nothing depends on the batch or the GPU: the same call gives
the same bytes, and an image gets the same result in a batch as alone.

N images of H x W pixels in channels_last; 64-bit offsets of images and rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .checks import DTYPES, INTERPRETED, PRIOR_TWIN, check_device, check_dtype, on_device
from .conv_kernels import layer_kernel
from .moments import BLOCK_S, blocks, chunking

SLICE = 32
"""channels that are read together: inputs have a multiple of this, or fewer"""
WARPS = 8


class Packed(NamedTuple):
    """A convolution's weight as :func:`pack` lays it out."""

    data: Tensor
    """[O, side², C]"""
    side: int


def pack(weight: Tensor) -> Packed:
    """Lay a weight [O, C, 3, 3], [O, C, 1, 1] or [O, C] out for :func:`layer`.

    A 4-dimensional weight in channels_last is not copied.
    """
    outs, channels = weight.shape[:2]
    side = weight.shape[2] if weight.ndim == 4 else 1
    last = weight.detach().reshape(outs, channels, side, side).permute(0, 2, 3, 1)
    return Packed(last.reshape(outs, side * side, channels).contiguous(), side)


class Part(NamedTuple):
    """An input [N, C, H, W] in channels_last, with its moments if a norm reads it."""

    data: Tensor
    moments: Tensor | None = None


def stages(wide: bool) -> int:
    """Return how many steps of the sum have their loads in flight at once."""
    return 3 if wide else 2


def layer(
    parts: Sequence[Part],
    packed: Packed,
    *,
    norm: tuple[Tensor, Tensor] | None = None,
    silu: bool = True,
    resample: str = "",
    stride: int = 1,
    bias: Tensor | None = None,
    skip: tuple[Packed, Sequence[Tensor]] | None = None,
    residual: Tensor | None = None,
    residual_size: str = "",
    want_moments: bool = True,
    tf32: bool = False,
) -> Part:
    """Convolve one input, or two side by side, with all that surrounds it; sums are float32.

    Args:
        parts: Inputs of one size and dtype (float32, bfloat16, float16), with a multiple of 32
            channels each, or one with fewer and no norm.
        packed: The weight from :func:`pack`, of the same dtype; padded with zeros by half its side.
        norm: float32 scale and shift [C] of a group norm over 32 groups; None: no norm, no SiLU.
        silu: Whether SiLU follows the norm.
        resample: What follows: "up" doubles by nearest neighbors, "down" halves by 2x2 means.
        stride: 1 or 2.
        bias: float32 [O] to add.
        skip: A 1x1 weight, and inputs of the result's size whose product with it is added.
        residual: What to add.
        residual_size: "": the residual is like the result; "up": half of its size, and doubled;
            "down": twice its size, and its 2x2 means are added.
        want_moments: Whether to compute moments of the result.
        tf32: Whether float32 may be rounded to TF32 in products.

    Returns:
        The result [N, O, H', W'] and float32 [N, sets, 2, O] or None: mean and sum of squared
        deviations of its channels over each of :func:`chunking`'s chunks of rows.

    Raises:
        TypeError: An argument has the wrong dtype.
        ValueError: An argument has the wrong shape, layout or device.
    """
    shape = _checked(parts, packed, norm, skip, resample, stride)
    like, skip_parts = parts[0].data, () if skip is None else skip[1]
    _check_vector("bias", bias, shape[1], like)
    if residual is not None:
        _check_map("residual", residual, _residual_shape(shape, residual_size), like)
    result = _empty(shape, like, want_moments)
    options = silu, resample, residual_size, stride, tf32
    grid, sizes, constants = _launch(parts, packed, norm is not None, skip_parts, shape, options)
    with on_device(like):
        layer_kernel[grid](
            *_two([part.data for part in parts]),
            *_two([part.moments if norm else None for part in parts]), *(norm or (None, None)),
            packed.data, bias, *_two(skip_parts), None if skip is None else skip[0].data, residual,
            *result, *sizes, **constants,
        )  # fmt: skip
    return result


def _empty(shape: tuple, like: Tensor, want_moments: bool) -> Part:
    n, outs, height, width = shape
    y = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    if not want_moments:
        return Part(y)
    sets = chunking(height * width, outs)[2]
    return Part(y, torch.empty(n, sets, 2, outs, device=like.device))


def _launch(parts, packed, normed: bool, skip_parts, shape, options) -> tuple:
    """Choose the kernel's grid, its sizes, which compile nothing new, and its constants."""
    silu, resample, residual_size, stride, tf32 = options
    n, outs, height, width = shape
    x, channels = parts[0].data, [part.data.shape[1] for part in parts]
    skip_channels = [part.shape[1] for part in skip_parts]
    block_m, block_n = blocks(outs)
    fit = not any(c % 64 for c in (*channels, *skip_channels))
    wide = block_n == 128 and x.element_size() == 2 and fit
    block_k = 64 if wide else SLICE
    tiles, _, sets = chunking(height * width, outs)
    source_h, source_w = x.shape[2:]
    of_parts = [chunking(source_h * source_w, c)[:0:-1] for c in (channels[0], channels[-1])]
    slices = [-(-c // block_k) for pair in (channels, skip_channels) for c in _two(pair, 0)]
    sizes = (*shape[2:], source_h, source_w, *slices, *of_parts[0], *of_parts[1], tiles)
    constants = dict(
        SIDE=packed.side, STRIDE=stride, ROWS=packed.side == 3 and stride == 1 and block_n < 128,
        NORM=normed, SILU=silu and normed, RESAMPLE=resample, RESIDUAL=residual_size,
        THIN=channels[0] if channels[0] < SLICE else 0, THIN_OUT=outs if outs < block_n else 0,
        PRECISION="tf32" if tf32 else "ieee", WIDEN=INTERPRETED,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, BLOCK_S=BLOCK_S,
        num_warps=WARPS, num_stages=stages(wide),
    )  # fmt: skip
    return (sets, triton.cdiv(outs, block_n), n), sizes, constants


def _size(side: int, resample: str, stride: int) -> int:
    side = 2 * side if resample == "up" else side // 2 if resample == "down" else side
    return -(-side // stride)


def _residual_shape(shape: Sequence[int], size: str) -> tuple[int, ...]:
    height, width = shape[2:]
    if size == "up":
        if height % 2 or width % 2:
            raise ValueError(f'residual_size is "up" for {height}x{width}; expected even sides')
        height, width = height // 2, width // 2
    elif size == "down":
        height, width = 2 * height, 2 * width
    return (*shape[:2], height, width)


def _two(values: Sequence, missing: Any = None) -> tuple[Any, Any]:
    first, second, *_ = *values, missing, missing
    return first, second


def _checked(parts, packed, norm, skip, resample, stride) -> tuple[int, int, int, int]:
    """Find the result's shape; TypeError or ValueError for what the kernel would read wrongly."""
    if len(parts) not in (1, 2):
        raise ValueError(f"parts holds {len(parts)} inputs; expected one or two")
    x = parts[0].data
    check_dtype("parts[0]", x, DTYPES)
    n, _, height, width = x.shape
    shape = n, len(packed.data), *(_size(side, resample, stride) for side in (height, width))
    for index, part in enumerate(parts):
        channels = part.data.shape[1]
        _check_map(f"parts[{index}]", part.data, (n, channels, height, width), x)
        if channels % SLICE and (channels > 16 or norm or len(parts) > 1):
            raise ValueError(
                f"parts[{index}] has {channels} channels; expected a multiple of {SLICE}, or up to "
                "16 in a single part without a norm"
            )
        if norm is not None:
            _, _, sets = chunking(height * width, channels)
            _check_moments(f"parts[{index}].moments", part.moments, (n, sets, 2, channels), x)
    total = sum(part.data.shape[1] for part in parts)
    for name, vector in zip(("norm[0]", "norm[1]"), norm or (), strict=False):
        _check_vector(name, vector, total, x)
    _check_packed("packed", packed, total, len(packed.data), x)
    if skip is not None:
        for index, part in enumerate(skip[1]):
            _check_map(f"skip[1][{index}]", part, (n, part.shape[1], *shape[2:]), x)
        _check_packed("skip[0]", skip[0], sum(p.shape[1] for p in skip[1]), shape[1], x)
    return shape


def _check_map(name: str, x: Tensor, shape, like: Tensor) -> None:
    check_dtype(name, x, [like.dtype])
    if tuple(x.shape) != tuple(shape) or 0 in x.shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {tuple(shape)}, no side 0")
    if not x.permute(0, 2, 3, 1).is_contiguous():
        raise ValueError(
            f"{name} has strides {x.stride()}; expected channels_last: "
            "call .contiguous(memory_format=torch.channels_last)"
        )
    check_device(name, x, like.device, PRIOR_TWIN)


def _check_packed(name: str, packed: Packed, channels: int, outs: int, like: Tensor) -> None:
    shape = outs, packed.side**2, channels
    check_dtype(name, packed.data, [like.dtype])
    if tuple(packed.data.shape) != shape or not packed.data.is_contiguous():
        raise ValueError(f"{name} has shape {tuple(packed.data.shape)}; expected {shape} of pack()")
    if outs > 16 and outs % 32:
        raise ValueError(f"{name} has {outs} outputs; expected a multiple of 32, or up to 16")
    check_device(name, packed.data, like.device, PRIOR_TWIN)


def _check_moments(name: str, moments: Tensor | None, shape, like: Tensor) -> None:
    if moments is None:
        raise ValueError(f"{name} is None; expected what layer() returns, which a norm needs")
    if tuple(moments.shape) != shape or moments.dtype != torch.float32:
        raise ValueError(
            f"{name} has shape {tuple(moments.shape)}, {moments.dtype}; expected {shape}, float32"
        )
    check_device(name, moments, like.device, PRIOR_TWIN)


def _check_vector(name: str, x: Tensor | None, size: int, like: Tensor) -> None:
    if x is None:
        return
    check_dtype(name, x, [torch.float32])
    if tuple(x.shape) != (size,) or not x.is_contiguous():
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {(size,)}, contiguous")
    check_device(name, x, like.device, PRIOR_TWIN)
