"""The kernel of ``conv.layer``: a convolution with what comes before and after it.

A program computes a run of pixels in reading order. A 3x3 convolution reads such a run three times,
for the rows above, at and below it, and multiplies each by the three taps of a row: the products
of the left and right taps belong to the neighboring pixel, so they move by one pixel at the end.
That is three reads and three SiLUs per input instead of nine, which is what bounds narrow layers.
Strided, 1x1 and wide convolutions go tap by tap.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .moments import statistics

SIZES = (
    "height", "width", "source_h", "source_w", "slices_a", "slices_b", "skip_slices_a",
    "skip_slices_b", "sets_a", "sets_b", "chunk_a", "chunk_b", "tiles",
)  # fmt: skip
VECTORS = ("norm_weight_ptr", "norm_bias_ptr", "bias_ptr")
"""rows of a table, at any address"""


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
def _weights(weight_ptr, tap, taps, channel, channels, out, there, WIDEN: tl.constexpr):
    """Load a tile [BLOCK_K, BLOCK_N] of [O, taps, C]."""
    at = weight_ptr + (out * taps + tap)[None, :] * channels + channel[:, None]
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
    """Find the input of slice ``index``, from pixel ``base`` on, its slices, and which it is."""
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
        w = _weights(weight_ptr, tap * 3, 9, channel, channels, out, there, WIDEN)
        left = tl.dot(x, w, left, input_precision=PRECISION)
        w = _weights(weight_ptr, tap * 3 + 1, 9, channel, channels, out, there, WIDEN)
        middle = tl.dot(x, w, middle, input_precision=PRECISION)
        w = _weights(weight_ptr, tap * 3 + 2, 9, channel, channels, out, there, WIDEN)
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
        w = _weights(weight_ptr, tap, SIDE * SIDE, channel, channels, out, there, WIDEN)
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


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=VECTORS)
def layer_kernel(
    a_ptr,  # float32, bfloat16 or float16 [N, H_s, W_s, C_a]
    b_ptr,  # as a, or None: [N, H_s, W_s, C_b], beside it
    moments_a_ptr,  # float32 [N, sets_a, 2, C_a] with NORM: of chunk_a rows each
    moments_b_ptr,
    norm_weight_ptr,  # float32 [C] with NORM
    norm_bias_ptr,
    weight_ptr,  # as a: [O, SIDE², C]
    bias_ptr,  # float32 [O], or None
    skip_a_ptr,  # as a [N, H, W, C_sa], or None
    skip_b_ptr,  # as a [N, H, W, C_sb], or None
    skip_weight_ptr,  # as a [O, C_sa + C_sb]
    residual_ptr,  # as a [N, H, W, O], or of half ("up") or twice ("down") the size, or None
    y_ptr,  # out: as a [N, H, W, O]
    moments_ptr,  # out: float32 [N, sets, 2, O], or None
    height, width, source_h, source_w,
    slices_a, slices_b, skip_slices_a, skip_slices_b,  # of BLOCK_K channels
    sets_a, chunk_a, sets_b, chunk_b,
    tiles,  # per program
    SIDE: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr,
    SILU: tl.constexpr, RESAMPLE: tl.constexpr, RESIDUAL: tl.constexpr,
    THIN: tl.constexpr,  # C_a if it is below BLOCK_K, else 0
    THIN_OUT: tl.constexpr,  # O if it is below BLOCK_N, else 0
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,  # to float32: the interpreter has no products of bfloat16
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
        mean, rstd = statistics(
            moments_a_ptr, moments_b_ptr, None, n, source_rows, slices_a * BLOCK_K,
            (slices_a + slices_b) * BLOCK_K, sets_a, chunk_a, sets_b, chunk_b, 0, BLOCK_S, 32,
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
