"""A layer of the prior in one launch: a faster version of ``priors.ops.plain.PlainOps``.

A convolution as an implicit matrix product, with what stands before it (group norm, SiLU,
resampling, two inputs side by side) done as it reads, and what stands after it (bias with the
shift of the timestep, residual or 1x1 skip, moments for the next norm) as it writes.

A program makes a run of pixels in reading order. A 3x3 convolution reads such a run three times,
for the rows above, at and below it, and multiplies each by the three taps of a row: the products
of the left and right taps belong to the pixel beside, so they move by one pixel at the end. That
is three reads and three SiLUs for an input instead of nine, which is what bounds narrow layers.
Strided, 1x1 and wide convolutions go tap by tap.

Moments are those of ``group_norm``: mean and sum of squared deviations of each channel over a
chunk of rows, one for each program. There are at most ``MOST_SETS`` for an image, so that the next
layer merges them as it starts and needs no launch for it. No atomics, and nothing depends on the
batch or the GPU: the same call gives the same bytes, and an image in a batch what it gets alone.

N images of H x W pixels in channels_last; 64-bit offsets of images and rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import DTYPES, INTERPRETED, PRIOR_TWIN, check_device, check_dtype, on_device

EPS = tl.constexpr(1e-5)
SLICE = 32
"""channels that are read together: inputs have a multiple of them, or fewer"""
MOST_SETS = 128
"""of moments for an image: about one program of eight warps for each SM of a large GPU"""
BLOCK_S = 64
"""of them that are merged at once"""
WARPS = 8
NARROW = 128
"""channels of a result up to which a 3x3 convolution goes row by row"""
_SIZES = (
    "height", "width", "source_h", "source_w", "slices_a", "slices_b", "skip_slices_a",
    "skip_slices_b", "sets_a", "sets_b", "chunk_a", "chunk_b", "tiles",
)  # fmt: skip
_VECTORS = ("norm_weight_ptr", "norm_bias_ptr", "bias_ptr")
"""rows of a table, at any address"""


@triton.jit
def _merged(
    ptr, n, rows, first, channels, sets, chunk, group, pivot, sums, squares,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Add a part's deviations from the pivot [32], and their squares, to those of its groups."""
    lane = tl.arange(0, 32)[None, :]
    for start in range(0, sets, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)[:, None]
        count = tl.minimum(tl.maximum(rows - s * chunk, 0), chunk).to(tl.float32)
        for j in range(group):
            channel = lane * group + j - first
            inside = (s < sets) & (channel >= 0) & (channel < channels)
            at = ptr + (n * sets + s) * 2 * channels + channel
            apart = tl.where(inside, tl.load(at, inside, other=0.0) - pivot[None, :], 0.0)
            sums += count * apart
            squares += tl.load(at + channels, inside, other=0.0) + count * apart * apart
    return sums, squares


@triton.jit
def _statistics(
    a_ptr, b_ptr, n, rows, channels_a, channels, sets_a, chunk_a, sets_b, chunk_b,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Find mean and 1/√(var + eps) [32] of the groups of one part, or of two side by side.

    Sums are of deviations from a mean within the group, so that they keep their digits.
    """
    group = channels // 32
    start = tl.arange(0, 32) * group
    pivot = tl.load(a_ptr + n * sets_a * 2 * channels_a + start, start < channels_a, other=0.0)
    if b_ptr is not None:
        channels_b = channels - channels_a
        pivot += tl.load(
            b_ptr + n * sets_b * 2 * channels_b + start - channels_a,
            start >= channels_a,
            other=0.0,
        )
    sums = tl.zeros([BLOCK_S, 32], tl.float32)
    squares = tl.zeros([BLOCK_S, 32], tl.float32)
    sums, squares = _merged(
        a_ptr, n, rows, 0, channels_a, sets_a, chunk_a, group, pivot, sums, squares, BLOCK_S
    )
    if b_ptr is not None:
        sums, squares = _merged(
            b_ptr, n, rows, channels_a, channels - channels_a, sets_b, chunk_b, group, pivot,
            sums, squares, BLOCK_S,
        )  # fmt: skip
    total = rows.to(tl.float32) * group.to(tl.float32)
    apart = tl.sum(sums, 0) / total
    var = tl.maximum(tl.sum(squares, 0) / total - apart * apart, 0.0)
    return pivot + apart, tl.div_rn(1.0, tl.sqrt_rn(var + EPS))


@triton.jit
def _affine(mean, rstd, weight_ptr, bias_ptr, channel, group):
    """Find scale and shift of these channels [BLOCK_K]: y = scale · x + shift."""
    scale = tl.load(weight_ptr + channel) * tl.gather(rstd, channel // group, 0)
    return scale, tl.load(bias_ptr + channel) - tl.gather(mean, channel // group, 0) * scale


@triton.jit
def _activated(x, scale, shift, NORM: tl.constexpr, SILU: tl.constexpr):
    x = x.to(tl.float32)
    if NORM:
        x = x * scale[None, :] + shift[None, :]
    if SILU:
        x = x * tl.sigmoid(x)
    return x


@triton.jit
def _read(
    x_ptr, at, inside, right, below, scale, shift,
    NORM: tl.constexpr, SILU: tl.constexpr, RESAMPLE: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Load a tile [BLOCK_M, BLOCK_K] as the product takes it; zeros outside, which no norm sees."""
    x = tl.load(x_ptr + at, inside, other=0.0)
    if NORM or RESAMPLE == "down":
        kind = x.dtype
        y = _activated(x, scale, shift, NORM, SILU)
        if RESAMPLE == "down":
            x = tl.load(x_ptr + at + right, inside, other=0.0)
            y += _activated(x, scale, shift, NORM, SILU)
            x = tl.load(x_ptr + at + below, inside, other=0.0)
            y += _activated(x, scale, shift, NORM, SILU)
            x = tl.load(x_ptr + at + below + right, inside, other=0.0)
            y = (y + _activated(x, scale, shift, NORM, SILU)) * 0.25
        x = tl.where(inside, y, 0.0).to(kind)
    if WIDEN:
        x = x.to(tl.float32)
    return x


@triton.jit
def _weights(weight_ptr, tap, channel, channels, out, outs, there, WIDEN: tl.constexpr):
    """Load a tile [BLOCK_K, BLOCK_N] of [taps, C, O]."""
    at = weight_ptr + (tap * channels + channel)[:, None] * outs + out[None, :]
    w = tl.load(at, there, other=0.0)
    if WIDEN:
        w = w.to(tl.float32)
    return w


@triton.jit
def _resampled(y, x, origin, source_w, RESAMPLE: tl.constexpr):
    """Find the pixel to read for (y, x) after resampling, counted from the row ``origin`` of y."""
    if RESAMPLE == "up":
        return (y // 2 - origin // 2) * source_w + x // 2
    if RESAMPLE == "down":
        return (y - origin) * 2 * source_w + x * 2
    return (y - origin) * source_w + x


@triton.jit
def _part(index, a_ptr, b_ptr, base, slices_a, slices_b, THIN: tl.constexpr, BLOCK_K: tl.constexpr):
    """Find the input that slice ``index`` is of: its pixel ``base``, slices, and the slice in it."""
    if THIN:
        return a_ptr + base * THIN, slices_a, index
    x_ptr = a_ptr + base * (slices_a * BLOCK_K)
    if b_ptr is not None:
        second = index >= slices_a
        x_ptr = tl.where(second, b_ptr + base * (slices_b * BLOCK_K), x_ptr)
        index = tl.where(second, index - slices_a, index)
        slices_a = tl.where(second, slices_b, slices_a)
    return x_ptr, slices_a, index


@triton.jit
def _by_rows(
    a_ptr, b_ptr, weight_ptr, mean, rstd, norm_weight_ptr, norm_bias_ptr,
    row, column, real, base, origin, height, width, source_w, slices_a, slices_b, out, outs,
    THIN: tl.constexpr, NORM: tl.constexpr, SILU: tl.constexpr, RESAMPLE: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Convolve by 3x3: each of three rows of pixels times the taps of each column."""
    k = tl.arange(0, BLOCK_K)
    slices = slices_a + slices_b
    channels = slices * BLOCK_K
    there = (out < outs)[None, :]
    if THIN:
        channels = THIN
        there = there & (k < THIN)[:, None]
    left = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    middle = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    right = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(slices * 3):
        index, tap = step // 3, step % 3
        x_ptr, of_part, local = _part(index, a_ptr, b_ptr, base, slices_a, slices_b, THIN, BLOCK_K)
        stride = of_part * BLOCK_K
        if THIN:
            stride = THIN
        channel = index * BLOCK_K + k
        scale, shift = mean, rstd
        if NORM:
            scale, shift = _affine(
                mean, rstd, norm_weight_ptr, norm_bias_ptr, channel, channels // 32
            )
        y = row + tap - 1
        inside = (real & (y >= 0) & (y < height))[:, None]
        if THIN:
            inside = inside & (k < THIN)[None, :]
        at = _resampled(y, column, origin, source_w, RESAMPLE)[:, None] * stride
        x = _read(
            x_ptr, at + (local * BLOCK_K + k)[None, :], inside, stride, source_w * stride,
            scale, shift, NORM, SILU, RESAMPLE, WIDEN,
        )  # fmt: skip
        w = _weights(weight_ptr, tap * 3, channel, channels, out, outs, there, WIDEN)
        left = tl.dot(x, w, left, input_precision=PRECISION)
        w = _weights(weight_ptr, tap * 3 + 1, channel, channels, out, outs, there, WIDEN)
        middle = tl.dot(x, w, middle, input_precision=PRECISION)
        w = _weights(weight_ptr, tap * 3 + 2, channel, channels, out, outs, there, WIDEN)
        right = tl.dot(x, w, right, input_precision=PRECISION)
    return middle + _beside(left, column, -1, 0) + _beside(right, column, 1, width - 1)


@triton.jit
def _by_taps(
    total, a_ptr, b_ptr, weight_ptr, mean, rstd, norm_weight_ptr, norm_bias_ptr,
    row, column, real, base, origin, in_h, in_w, source_w, slices_a, slices_b, out, outs,
    SIDE: tl.constexpr, STRIDE: tl.constexpr, THIN: tl.constexpr,
    NORM: tl.constexpr, SILU: tl.constexpr, RESAMPLE: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Convolve tap by tap, and add it to ``total``."""
    k = tl.arange(0, BLOCK_K)
    slices = slices_a + slices_b
    channels = slices * BLOCK_K
    there = (out < outs)[None, :]
    if THIN:
        channels = THIN
        there = there & (k < THIN)[:, None]
    for step in range(slices * SIDE * SIDE):
        tap, index = step // slices, step % slices
        x_ptr, of_part, local = _part(index, a_ptr, b_ptr, base, slices_a, slices_b, THIN, BLOCK_K)
        stride = of_part * BLOCK_K
        if THIN:
            stride = THIN
        channel = index * BLOCK_K + k
        scale, shift = mean, rstd
        if NORM:
            scale, shift = _affine(
                mean, rstd, norm_weight_ptr, norm_bias_ptr, channel, channels // 32
            )
        y = row * STRIDE + tap // SIDE - SIDE // 2
        x = column * STRIDE + tap % SIDE - SIDE // 2
        inside = (real & (y >= 0) & (y < in_h) & (x >= 0) & (x < in_w))[:, None]
        if THIN:
            inside = inside & (k < THIN)[None, :]
        at = _resampled(y, x, origin, source_w, RESAMPLE)[:, None] * stride
        a = _read(
            x_ptr, at + (local * BLOCK_K + k)[None, :], inside, stride, source_w * stride,
            scale, shift, NORM, SILU, RESAMPLE, WIDEN,
        )  # fmt: skip
        w = _weights(weight_ptr, tap, channel, channels, out, outs, there, WIDEN)
        total = tl.dot(a, w, total, input_precision=PRECISION)
    return total


@triton.jit
def _beside(x, column, step: tl.constexpr, edge):
    """Move the rows of x [BLOCK_M, BLOCK_N] by ``step``; zero where a line of pixels ends."""
    size: tl.constexpr = x.shape[0]
    source = tl.minimum(tl.maximum(tl.arange(0, size) + step, 0), size - 1)
    moved = tl.gather(x, tl.broadcast_to(source[:, None], x.shape), 0)
    return tl.where((column != edge)[:, None], moved, 0.0)


@triton.jit
def _base(n, origin, rows, width, RESAMPLE: tl.constexpr):
    """Find the first pixel of the row that ``origin`` is read from, in the whole batch."""
    if RESAMPLE == "up":
        origin = origin // 2
    elif RESAMPLE == "down":
        origin = origin * 2
    return n * rows + origin.to(tl.int64) * width


@triton.jit
def _residual(
    r_ptr, n, row, column, origin, height, width, stride, out, mask, RESIDUAL: tl.constexpr
):
    """Load what to add: a map of the size, of half of it ("up"), or 2x2 means of twice ("down")."""
    if RESIDUAL == "up":
        height, width = height // 2, width // 2
    elif RESIDUAL == "down":
        height, width = height * 2, width * 2
    r_ptr += _base(n, origin, height * width, width, RESIDUAL) * stride
    at = r_ptr + _resampled(row, column, origin, width, RESIDUAL)[:, None] * stride + out[None, :]
    r = tl.load(at, mask, other=0.0).to(tl.float32)
    if RESIDUAL == "down":
        r += tl.load(at + stride, mask, other=0.0).to(tl.float32)
        r += tl.load(at + width * stride, mask, other=0.0).to(tl.float32)
        r = (r + tl.load(at + (width + 1) * stride, mask, other=0.0).to(tl.float32)) * 0.25
    return r


@triton.jit
def _welford(x, mine, count, seen, mean, squares):
    """Merge a tile's ``count`` rows of x that are ``mine`` into mean and squares (Chan)."""
    of_tile = tl.sum(tl.where(mine, x, 0.0), 0) / count
    apart = tl.where(mine, x - of_tile[None, :], 0.0)
    delta, share = of_tile - mean, count / (seen + count)
    squares += tl.sum(apart * apart, 0) + delta * delta * (seen * share)
    return mean + delta * share, squares


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_VECTORS)
def layer_kernel(
    a_ptr,  # float32, bfloat16 or float16 [N, H_s, W_s, C_a]
    b_ptr,  # as a, or None: [N, H_s, W_s, C_b], beside it
    moments_a_ptr,  # float32 [N, sets_a, 2, C_a] with NORM: of chunk_a rows each
    moments_b_ptr,
    norm_weight_ptr,  # float32 [C] with NORM
    norm_bias_ptr,
    weight_ptr,  # as a: [SIDE², C, O]
    bias_ptr,  # float32 [O], or None
    skip_a_ptr,  # as a [N, H, W, C_sa], or None
    skip_b_ptr,  # as a [N, H, W, C_sb], or None
    skip_weight_ptr,  # as a [C_sa + C_sb, O]
    residual_ptr,  # as a [N, H, W, O], or of half ("up") or twice ("down") the size, or None
    y_ptr,  # out: as a [N, H, W, O]
    moments_ptr,  # out: float32 [N, sets, 2, O], or None
    height, width, source_h, source_w,
    slices_a, slices_b, skip_slices_a, skip_slices_b,  # of BLOCK_K channels
    sets_a, chunk_a, sets_b, chunk_b,
    tiles,  # that a program makes
    SIDE: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr,
    SILU: tl.constexpr, RESAMPLE: tl.constexpr, RESIDUAL: tl.constexpr,
    THIN: tl.constexpr,  # C_a if it is below BLOCK_K, else 0
    THIN_OUT: tl.constexpr,  # O if it is below BLOCK_N, else 0
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,  # to float32 before the product: the interpreter has none of bfloat16
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Compute y = conv(resample(SiLU(norm(a, b)))) + bias + skip, and its moments.

    Grid: (sets, O / BLOCK_N, N). A tile is BLOCK_M pixels, of which the first and the last belong
    to its neighbors. ROWS: row by row, else tap by tap.
    """
    n = tl.program_id(2).to(tl.int64)
    out = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    outs = tl.num_programs(1) * BLOCK_N
    if THIN_OUT:
        outs = THIN_OUT
    lane = tl.arange(0, BLOCK_M)
    rows, source_rows = height * width, source_h * source_w
    mean = tl.zeros([32], tl.float32)
    rstd = mean
    if NORM:
        mean, rstd = _statistics(
            moments_a_ptr, moments_b_ptr, n, source_rows, slices_a * BLOCK_K,
            (slices_a + slices_b) * BLOCK_K, sets_a, chunk_a, sets_b, chunk_b, BLOCK_S,
        )  # fmt: skip
    in_h, in_w = height, width
    if STRIDE == 2:
        in_h, in_w = source_h, source_w
    start = tl.program_id(0) * tiles * (BLOCK_M - 2)
    y_mean = tl.zeros([BLOCK_N], tl.float32)
    y_squares = tl.zeros([BLOCK_N], tl.float32)
    seen = 0.0
    for tile in range(tl.minimum(tiles, tl.cdiv(rows - start, BLOCK_M - 2))):
        first = start + tile * (BLOCK_M - 2)
        pixel = first - 1 + lane
        row, column, top = pixel // width, pixel % width, first // width
        real = (pixel >= 0) & (pixel < rows)
        base = _base(n, top * STRIDE, source_rows, source_w, RESAMPLE)
        if ROWS:
            total = _by_rows(
                a_ptr, b_ptr, weight_ptr, mean, rstd, norm_weight_ptr, norm_bias_ptr,
                row, column, real, base, top, height, width, source_w, slices_a, slices_b,
                out, outs, THIN, NORM, SILU, RESAMPLE, PRECISION, WIDEN, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        else:
            total = _by_taps(
                tl.zeros([BLOCK_M, BLOCK_N], tl.float32), a_ptr, b_ptr, weight_ptr, mean, rstd,
                norm_weight_ptr, norm_bias_ptr, row, column, real, base, top * STRIDE, in_h, in_w,
                source_w, slices_a, slices_b, out, outs,
                SIDE, STRIDE, THIN, NORM, SILU, RESAMPLE, PRECISION, WIDEN, BLOCK_K,
            )  # fmt: skip
        base = n * rows + top.to(tl.int64) * width
        if skip_a_ptr is not None:
            total = _by_taps(
                total, skip_a_ptr, skip_b_ptr, skip_weight_ptr, mean, rstd, None, None,
                row, column, real, base, top, height, width, width, skip_slices_a, skip_slices_b,
                out, outs, 1, 1, 0, False, False, "", PRECISION, WIDEN, BLOCK_K,
            )  # fmt: skip
        if bias_ptr is not None:
            total += tl.load(bias_ptr + out, out < outs, other=0.0)[None, :]
        mine = (real & (lane > 0) & (lane < BLOCK_M - 1))[:, None]
        mask = mine & (out < outs)[None, :]
        if residual_ptr is not None:
            total += _residual(
                residual_ptr, n, row, column, top, height, width, outs, out, mask, RESIDUAL
            )
        stored = total.to(y_ptr.dtype.element_ty)
        at = ((row - top) * width + column)[:, None] * outs + out[None, :]
        tl.store(y_ptr + base * outs + at, stored, mask)
        if moments_ptr is not None:
            count = tl.minimum(rows - first, BLOCK_M - 2).to(tl.float32)
            y_mean, y_squares = _welford(
                stored.to(tl.float32), mine, count, seen, y_mean, y_squares
            )
            seen += count
    if moments_ptr is not None:
        at = (n * tl.num_programs(0) + tl.program_id(0)) * 2 * outs + out
        tl.store(moments_ptr + at, y_mean, out < outs)
        tl.store(moments_ptr + at + outs, y_squares, out < outs)


class Packed(NamedTuple):
    """A convolution's weight as :func:`pack` lays it out."""

    data: Tensor
    """[side², C, O]"""
    side: int


def pack(weight: Tensor) -> Packed:
    """Lay a weight [O, C, 3, 3], [O, C, 1, 1] or [O, C] out for :func:`layer`."""
    side = weight.shape[2] if weight.ndim == 4 else 1
    taps = weight.detach().reshape(*weight.shape[:2], side * side)
    return Packed(taps.permute(2, 1, 0).contiguous(), side)


class Part(NamedTuple):
    """An input [N, C, H, W] in channels_last, with its moments where a norm reads it."""

    data: Tensor
    moments: Tensor | None = None


def blocks(outs: int) -> tuple[int, int]:
    """Give (BLOCK_M, BLOCK_N) for so many channels of a result, whatever the image."""
    if outs <= 16:
        return 128, 16
    if outs > NARROW and outs % 128 == 0:
        return 128, 128
    return (128, 32) if outs == 32 else (64, 32)  # more channels are on smaller maps


def chunking(rows: int, outs: int) -> tuple[int, int, int]:
    """Give (tiles of a program, rows of its chunk, chunks) for a result's rows and channels."""
    pixels = blocks(outs)[0] - 2
    tiles = triton.cdiv(triton.cdiv(rows, pixels), MOST_SETS)
    return tiles, tiles * pixels, triton.cdiv(rows, tiles * pixels)


def suits(weight: Tensor) -> bool:
    """Say whether :func:`layer` can do a convolution with this weight."""
    outs, channels = weight.shape[:2]
    return (channels <= 16 or channels % SLICE == 0) and (outs <= 16 or outs % 32 == 0)


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
        residual: To add: like the result, of half its size with ``residual_size="up"``, or of
            twice its size, of which 2x2 means are added, with "down".
        want_moments: Whether moments of the result are found.

    Returns:
        The result [N, O, H', W'] and float32 [N, sets, 2, O] or None: mean and sum of squared
        deviations of its channels over each of :func:`chunking`'s chunks of rows.

    Raises:
        TypeError: An argument is of another dtype.
        ValueError: An argument is of another shape, layout or device.
    """
    x, (n, _, source_h, source_w) = parts[0].data, parts[0].data.shape
    height, width = (_size(side, resample, stride) for side in (source_h, source_w))
    rows, outs = height * width, packed.data.shape[2]
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
    wide = block_n == 128 and not any(c % 64 for c in (*channels, *skip_channels))
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
            THIN_OUT=outs if outs < block_n else 0, PRECISION="ieee", WIDEN=INTERPRETED,
            BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, BLOCK_S=BLOCK_S,
            num_warps=WARPS, num_stages=3 if wide else 2,
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
    if len(parts) not in (1, 2):
        raise ValueError(f"parts holds {len(parts)} inputs; expected one or two")
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
    _check_packed("packed", packed, total, packed.data.shape[2], x)
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
    shape = packed.side**2, channels, outs
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
