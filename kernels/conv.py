"""A layer of the prior in one launch: a faster version of ``priors.ops.plain.PlainOps``.

A convolution as an implicit matrix product, with what stands before it (group norm, SiLU,
resampling, two inputs side by side) done as it reads, and what stands after it (bias with the
shift of the timestep, residual or 1x1 skip, moments for the next norm) as it writes.

There are few moments for an image (``moments``), so that the next layer merges them as it
starts and needs no launch for it. No atomics, and nothing depends on the batch or the GPU: the same
call gives the same bytes, and an image in a batch what it gets alone.

N images of H x W pixels in channels_last; 64-bit offsets of images and rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .checks import DTYPES, INTERPRETED, PRIOR_TWIN, check_device, check_dtype, on_device
from .conv_kernels import layer_kernel
from .moments import BLOCK_S, blocks, chunking

SLICE = 32
"""channels that are read together: inputs have a multiple of them, or fewer"""
WARPS = 8


class Packed(NamedTuple):
    """A convolution's weight as :func:`pack` lays it out."""

    data: Tensor
    """[O, side², C]"""
    side: int


def pack(weight: Tensor) -> Packed:
    """Lay a weight [O, C, 3, 3], [O, C, 1, 1] or [O, C] out for :func:`layer`.

    No copy where a 4-dimensional one is in channels_last.
    """
    outs, channels = weight.shape[:2]
    side = weight.shape[2] if weight.ndim == 4 else 1
    last = weight.detach().reshape(outs, channels, side, side).permute(0, 2, 3, 1)
    return Packed(last.reshape(outs, side * side, channels).contiguous(), side)


class Part(NamedTuple):
    """An input [N, C, H, W] in channels_last, with its moments where a norm reads it."""

    data: Tensor
    moments: Tensor | None = None


def stages(wide: bool) -> int:
    """Give the loads that are in flight at once, in steps of the sum."""
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
        resample: Then "up" doubles by nearest neighbors, "down" halves by 2x2 means.
        stride: 1 or 2.
        bias: float32 [O] to add.
        skip: A 1x1 weight and the inputs, of the result's size, whose product with it to add.
        residual: To add.
        residual_size: "": the residual is like the result; "up": half of its size, and doubled;
            "down": twice its size, and its 2x2 means are added.
        want_moments: Whether moments of the result are found.
        tf32: Whether float32 may be rounded to TF32 in products.

    Returns:
        The result [N, O, H', W'] and float32 [N, sets, 2, O] or None: mean and sum of squared
        deviations of its channels over each of :func:`chunking`'s chunks of rows.

    Raises:
        TypeError: An argument is of another dtype.
        ValueError: An argument is of another shape, layout or device.
    """
    if len(parts) not in (1, 2):
        raise ValueError(f"parts holds {len(parts)} inputs; expected one or two")
    x, (n, _, source_h, source_w) = parts[0].data, parts[0].data.shape
    height, width = (_size(side, resample, stride) for side in (source_h, source_w))
    rows, outs = height * width, len(packed.data)
    shape = n, outs, height, width
    skip_parts = () if skip is None else skip[1]
    _check(parts, packed, norm, skip, shape)
    _check_vector("bias", bias, outs, x)
    if residual is not None:
        _check_map("residual", residual, (n, outs, *_residual_size(shape, residual_size)), x)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    tiles, _, sets = chunking(rows, outs)
    moments = torch.empty(n, sets, 2, outs, device=x.device) if want_moments else None
    block_m, block_n = blocks(outs)
    channels = [part.data.shape[1] for part in parts]
    skip_channels = [part.shape[1] for part in skip_parts]
    wide = (
        block_n == 128
        and x.element_size() == 2
        and not any(c % 64 for c in (*channels, *skip_channels))
    )
    block_k = 64 if wide else SLICE
    _, chunk_a, sets_a, _, chunk_b, sets_b = (
        *chunking(source_h * source_w, channels[0]), *chunking(source_h * source_w, channels[-1])
    )  # fmt: skip
    (slices_a, slices_b), (skip_a, skip_b) = (_two(c, block_k) for c in (channels, skip_channels))
    weight, shift = norm or (None, None)
    maps = [part.data for part in parts], [part.moments if norm else None for part in parts]
    with on_device(x):
        layer_kernel[sets, triton.cdiv(outs, block_n), n](
            *_filled(maps[0]), *_filled(maps[1]), weight, shift, packed.data, bias,
            *_filled(skip_parts), None if skip is None else skip[0].data, residual, y, moments,
            height, width, source_h, source_w, slices_a, slices_b, skip_a, skip_b,
            sets_a, chunk_a, sets_b, chunk_b, tiles,
            SIDE=packed.side, STRIDE=stride, NORM=norm is not None, SILU=silu and norm is not None,
            ROWS=packed.side == 3 and stride == 1 and block_n < 128, RESAMPLE=resample,
            RESIDUAL=residual_size, THIN=channels[0] if channels[0] < SLICE else 0,
            THIN_OUT=outs if outs < block_n else 0, PRECISION="tf32" if tf32 else "ieee",
            WIDEN=INTERPRETED,
            BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, BLOCK_S=BLOCK_S,
            num_warps=WARPS, num_stages=stages(wide),
        )  # fmt: skip
    return Part(y, moments)


def _size(side: int, resample: str, stride: int) -> int:
    side = 2 * side if resample == "up" else side // 2 if resample == "down" else side
    return -(-side // stride)


def _residual_size(shape: Sequence[int], size: str) -> tuple[int, int]:
    height, width = shape[2:]
    if size == "up":
        if height % 2 or width % 2:
            raise ValueError(f'residual_size is "up" for {height}x{width}; expected even sides')
        return height // 2, width // 2
    return (2 * height, 2 * width) if size == "down" else (height, width)


def _two(channels: Sequence[int], block: int) -> tuple[int, int]:
    first, second, *_ = *(-(-c // block) for c in channels), 0, 0
    return first, second


def _filled(tensors: Sequence) -> tuple:
    first, second, *_ = *tensors, None, None
    return first, second


def _check(parts, packed, norm, skip, shape) -> None:
    """Raise TypeError or ValueError for what the kernel would read wrongly."""
    x = parts[0].data
    check_dtype("parts[0]", x, DTYPES)
    n, _, height, width = x.shape
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
