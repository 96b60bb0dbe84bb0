"""GroupNorm and what surrounds it on a GPU: a faster version of ``priors.ops.plain.PlainOps``.

Activations are in channels_last. A norm is split at its statistics: the kernel that writes an
activation also stores its moments, channel by channel, so that the norm reads it once.

    moments_kernel   x → moments of each channel in each chunk of rows; as ``join_`` it first
                     adds bias and residual (nearest-upsampled if asked) in place
    norm_kernel      merges moments of one tensor, or of two that stand side by side, to a and b of
                     y = SiLU(a · x + b), nearest upsampling or 2x2 means, in place or out

    whole_norm_kernel  the same for small maps, of which a program reads a whole group

Moments per channel let a consumer group the channels as it likes: a concatenation is never
made for its norm, and the bias of the previous convolution is added to the means, not to the
activation. Statistics are float32 by Welford's update and Chan's merge, whatever the dtype of
the activations. There are no atomics, and nothing depends on the batch or on the GPU, so the same
call gives the same bytes, and a batch gives each image what it gets alone.

N images of R = H W rows and C channels; 64-bit row offsets. A new size compiles nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import DTYPES, PRIOR_TWIN, check_device, check_dtype, on_device
from .moments import BLOCK_S, EPS, chunking, statistics

GROUPS = 32
NORM_ELEMENTS, MOMENTS_ELEMENTS = 4096, 2048
"""elements of a tile: 32 per thread with 4 warps, which are four loads of 128 bits in bfloat16;
half as many if each element has a mean and a sum of squares of its own"""
MOST_PROGRAMS = 128
"""most programs of a norm for the rows of a block of channels: each merges the moments itself"""
WHOLE_ROWS, WHOLE_LANES = 1536, 32
"""pixels up to which a program finds the moments of a group itself, and channels of that group"""
_SIZES = ("rows", "chunk", "width")
_NORM_SIZES = (
    "rows", "width", "source_rows", "blocks_a", "blocks_b", "sets_a", "chunk_a", "sets_b",
    "chunk_b", "tiles",
)  # fmt: skip
_VECTORS = ("bias_ptr", "weight_ptr", "shift_ptr")
"""rows of a table, at any address"""


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=("bias_ptr",))
def moments_kernel(
    x_ptr,  # float32, bfloat16 or float16 [N, R, C]; in place with JOIN
    bias_ptr,  # float32 [C], or None
    residual_ptr,  # as x, or [N, R / 4, C] with UPSAMPLE, or None
    partial_ptr,  # out: float32 [N, chunks, 2, C], mean and sum of squared deviations
    rows,  # R
    channels,  # C
    chunk,  # rows that share one set of moments
    width,  # W, used only with UPSAMPLE
    JOIN: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Find the moments of x, or of x + bias + residual, which then replaces x.

    Each element of the tile follows its own rows by Welford's update; at the end the tile's rows
    are merged (Chan). Grid: (chunks, C / BLOCK_C, N).
    """
    n = tl.program_id(2).to(tl.int64)
    col = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    lane = tl.arange(0, BLOCK_R)[:, None]
    first = tl.program_id(0) * chunk
    count = tl.minimum(chunk, rows - first)
    mean = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + col)
    seen = 0.0
    for start in range(0, count, BLOCK_R):
        inside = start + lane < count
        row = first + start + lane
        at = (n * rows + row) * channels + col
        x = tl.load(x_ptr + at, inside, other=0.0).to(tl.float32)
        if JOIN:
            if bias_ptr is not None:
                x += bias
            if residual_ptr is not None:
                if UPSAMPLE:
                    source = (row // width // 2) * (width // 2) + row % width // 2
                    at_r = (n * (rows // 4) + source) * channels + col
                else:
                    at_r = at
                x += tl.load(residual_ptr + at_r, inside, other=0.0).to(tl.float32)
            stored = x.to(x_ptr.dtype.element_ty)
            tl.store(x_ptr + at, stored, inside)
            x = stored.to(tl.float32)
        seen += 1.0
        delta = tl.where(inside, x - mean, 0.0)
        mean += delta * (1.0 / seen)
        squares += delta * (x - mean)
    lanes = tl.maximum((count - lane + BLOCK_R - 1) // BLOCK_R, 0).to(tl.float32)
    merged = tl.sum(lanes * mean, 0) / count
    squares += lanes * (mean - merged[None, :]) * (mean - merged[None, :])
    out_ptr = partial_ptr + (n * tl.num_programs(0) + tl.program_id(0)) * 2 * channels
    out = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    tl.store(out_ptr + out, merged)
    tl.store(out_ptr + channels + out, tl.sum(squares, 0))


@triton.jit
def _affine(x, a, b, SILU: tl.constexpr):
    y = x * a + b
    if SILU:
        y = y * tl.sigmoid(y)
    return y


@triton.jit(do_not_specialize=_NORM_SIZES, do_not_specialize_on_alignment=_VECTORS)
def norm_kernel(
    a_ptr,  # float32, bfloat16 or float16 [N, R_s, C_a]
    b_ptr,  # as a [N, R_s, C_b], beside it, or None
    moments_a_ptr,  # float32 [N, sets_a, 2, C_a]
    moments_b_ptr,
    bias_ptr,  # float32 [C] that the parts still lack, or None
    weight_ptr,  # float32 [C]: the norm's own scale
    shift_ptr,  # float32 [C]: and shift
    y_ptr,  # out, as a: [N, R, C]; a itself is allowed without resampling and b
    pooled_ptr,  # out: 2x2 means of a itself [N, R, C], or None
    rows,  # R, of y
    width,  # W of y, used only with resampling
    source_rows,  # R_s
    blocks_a, blocks_b,  # of 32 channels
    sets_a, chunk_a, sets_b, chunk_b,
    tiles,  # per program
    RESAMPLE: tl.constexpr, SILU: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Store y = SiLU(norm(a, b)), nearest-upsampled ("up") or 2x2 means.

    Grid: (tiles of rows / tiles, C / BLOCK_C, N). BLOCK_G: groups that a block reaches into.
    """
    n = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * BLOCK_C
    channels_a, channels = blocks_a * 32, (blocks_a + blocks_b) * 32
    group = channels // 32
    near = first // group
    mean, rstd = statistics(
        moments_a_ptr, moments_b_ptr, bias_ptr, n, source_rows, channels_a, channels,
        sets_a, chunk_a, sets_b, chunk_b, near, BLOCK_S, BLOCK_G,
    )  # fmt: skip
    channel = first + tl.arange(0, BLOCK_C)
    offset = -tl.gather(mean, channel // group - near, 0)
    if bias_ptr is not None:
        offset += tl.load(bias_ptr + channel)
    a = tl.load(weight_ptr + channel) * tl.gather(rstd, channel // group - near, 0)
    b = (tl.load(shift_ptr + channel) + offset * a)[None, :]
    a = a[None, :]
    x_ptr, stride, start = a_ptr, blocks_a, first
    if b_ptr is not None:
        second = first >= channels_a
        x_ptr = tl.where(second, b_ptr, a_ptr)
        stride = tl.where(second, blocks_b, blocks_a)
        start = tl.where(second, first - channels_a, first)
    stride = stride * 32
    col = start + tl.arange(0, BLOCK_C)[None, :]
    base = tl.program_id(0) * tiles
    for tile_row in range(base, tl.minimum(base + tiles, tl.cdiv(rows, BLOCK_R))):
        row = tile_row * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
        inside = row < rows
        if RESAMPLE == "down":
            row_x = (row // width) * 4 * width + row % width * 2
            at = (n * source_rows + row_x) * stride + col
            at_below = (n * source_rows + row_x + 2 * width) * stride + col
            x = tl.load(x_ptr + at, inside, other=0.0).to(tl.float32)
            raw, y = x, _affine(x, a, b, SILU)
            x = tl.load(x_ptr + at + stride, inside, other=0.0).to(tl.float32)
            raw, y = raw + x, y + _affine(x, a, b, SILU)
            x = tl.load(x_ptr + at_below, inside, other=0.0).to(tl.float32)
            raw, y = raw + x, y + _affine(x, a, b, SILU)
            x = tl.load(x_ptr + at_below + stride, inside, other=0.0).to(tl.float32)
            raw, y = (raw + x) * 0.25, (y + _affine(x, a, b, SILU)) * 0.25
            if pooled_ptr is not None:
                tl.store(pooled_ptr + (n * rows + row) * stride + col, raw, inside)
        else:
            row_x = row
            if RESAMPLE == "up":
                row_x = (row // width // 2) * (width // 2) + row % width // 2
            at = (n * source_rows + row_x) * stride + col
            x = tl.load(x_ptr + at, inside, other=0.0).to(tl.float32)
            y = _affine(x, a, b, SILU)
        tl.store(y_ptr + (n * rows + row) * channels + channel[None, :], y, inside)


@triton.jit(do_not_specialize=("rows", "eighth"), do_not_specialize_on_alignment=_VECTORS)
def whole_norm_kernel(
    x_ptr,  # float32, bfloat16 or float16 [N, R, C]; in place
    bias_ptr,  # float32 [C] that x still lacks, or None
    weight_ptr,  # float32 [C]
    shift_ptr,  # float32 [C]
    rows,  # R
    eighth,  # of the channels of a group
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Replace x by SiLU(norm(x + bias)). Grid: (32 groups, N); a program reads a group three times.

    Two passes over x: its mean, then the deviations from it.
    """
    group = eighth * 8
    base = tl.program_id(1).to(tl.int64) * rows * group * 32
    lane = tl.arange(0, BLOCK_C)
    mine = lane < group
    col = tl.program_id(0) * group + lane
    bias = tl.zeros([BLOCK_C], tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + col, mine, other=0.0)
    total = rows.to(tl.float32) * group.to(tl.float32)
    sums = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(0, rows, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        inside = (row < rows) & mine[None, :]
        x = tl.load(x_ptr + base + row * (group * 32) + col[None, :], inside, other=0.0)
        sums += tl.where(inside, x.to(tl.float32) + bias[None, :], 0.0)
    mean = tl.sum(tl.sum(sums, 1), 0) / total
    squares = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(0, rows, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        inside = (row < rows) & mine[None, :]
        x = tl.load(x_ptr + base + row * (group * 32) + col[None, :], inside, other=0.0)
        apart = tl.where(inside, x.to(tl.float32) + bias[None, :] - mean, 0.0)
        squares += apart * apart
    var = tl.sum(tl.sum(squares, 1), 0) / total
    a = tl.load(weight_ptr + col, mine, other=0.0) * tl.div_rn(1.0, tl.sqrt_rn(var + EPS))
    b = tl.load(shift_ptr + col, mine, other=0.0) + (bias - mean) * a
    for start in range(0, rows, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        inside = (row < rows) & mine[None, :]
        at = x_ptr + base + row * (group * 32) + col[None, :]
        y = _affine(tl.load(at, inside, other=0.0).to(tl.float32), a[None, :], b[None, :], True)
        tl.store(at, y, inside)


def tile(elements: int, *channels: int) -> tuple[int, int]:
    """Return (BLOCK_R, BLOCK_C) for these channel counts: no tile reaches past the last channel."""
    block_c = min(128, math.gcd(*channels) & -math.gcd(*channels))
    return elements // block_c, block_c


def moments(x: Tensor) -> Tensor:
    """Find the mean and the sum of squared deviations of each channel, chunk by chunk.

    Args:
        x: [N, C, H, W] in channels_last, float32, bfloat16 or float16, C a multiple of 32.

    Returns:
        float32 [N, sets, 2, C], of the chunks of rows that ``moments.chunking`` gives.

    Raises:
        TypeError: x has another dtype.
        ValueError: x has the wrong shape, layout or device.
    """
    _check("x", x, x.shape, DTYPES)
    return _launch_moments(x, None, None, join=False, upsample=False)


def join_(
    h: Tensor, bias: Tensor | None, residual: Tensor | None = None, *, upsample: bool = False
) -> Tensor:
    """Add bias and residual to h in place, and find the moments of the result.

    Args:
        h: [N, C, H, W] in channels_last, as :func:`moments` takes it.
        bias: float32 [C] or None.
        residual: Like h, or with ``upsample`` [N, C, H/2, W/2], each value standing for 2x2.
        upsample: Whether the residual has half the size.

    Returns:
        The moments as :func:`moments` gives them.

    Raises:
        TypeError: An argument has the wrong dtype.
        ValueError: An argument has the wrong shape, layout or device.
    """
    _check("h", h, h.shape, DTYPES)
    n, c, height, width = h.shape
    if bias is not None:
        _check_vector("bias", bias, (c,), h.device)
    if residual is not None:
        if upsample and (height % 2 or width % 2):
            raise ValueError(f"h has shape {tuple(h.shape)}; expected even H and W with upsample")
        shape = (n, c, height // 2, width // 2) if upsample else h.shape
        _check("residual", residual, shape, (h.dtype,), h.device)
    return _launch_moments(h, bias, residual, join=True, upsample=upsample)


def _launch_moments(x, bias, residual, *, join: bool, upsample: bool) -> Tensor:
    n, c, height, width = x.shape
    _, chunk, sets = chunking(height * width, c)
    block_r, block_c = tile(MOMENTS_ELEMENTS, c)
    partial = torch.empty(n, sets, 2, c, device=x.device)
    with on_device(x):
        moments_kernel[sets, c // block_c, n](
            x, bias, residual, partial, height * width, c, chunk, width,
            JOIN=join, UPSAMPLE=upsample, BLOCK_R=block_r, BLOCK_C=block_c,
        )  # fmt: skip
    return partial


def normalize(
    parts: Sequence[tuple[Tensor, Tensor]],
    weight: Tensor,
    shift: Tensor,
    *,
    bias: Tensor | None = None,
    silu: bool = True,
    resample: str = "",
    out: Tensor | None = None,
    pool_input: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Apply a norm over 32 groups and SiLU to x, or to two tensors side by side.

    Args:
        parts: One or two tensors [N, C, H, W] of one dtype in channels_last, each with its
            :func:`moments`.
        weight: float32 [C] of the norm.
        shift: float32 [C] of the norm.
        bias: float32 [C] that x still lacks, or None.
        silu: Whether SiLU follows the norm.
        resample: "", "up" (nearest, twice the size) or "down" (2x2 means of y).
        out: Where y goes, which may be the single part without resampling; a new tensor by default.
        pool_input: Whether to return the 2x2 means of x, with "down" and a single part.

    Returns:
        y, and the 2x2 means of x or None.

    Raises:
        TypeError: An argument has the wrong dtype.
        ValueError: An argument has the wrong shape, layout or device, or does not go with another.
    """
    _check_parts(parts, {"weight": weight, "shift": shift, "bias": bias}, resample, pool_input)
    x, channels = parts[0][0], [part.shape[1] for part, _ in parts]
    n, _, height, width = x.shape
    rows, group = height * width, sum(channels) // GROUPS
    if resample == "up":
        height, width = 2 * height, 2 * width
    elif resample == "down":
        height, width = height // 2, width // 2
    shape = n, sum(channels), height, width
    if out is None:
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _check("out", out, shape, (x.dtype,), x.device)
    pooled = torch.empty_like(out) if pool_input else None
    block_r, block_c = tile(NORM_ELEMENTS, *channels)
    if resample == "down":
        block_r //= 4  # four rows are read per row
    blocks = triton.cdiv(height * width, block_r)
    tiles = triton.cdiv(blocks, MOST_PROGRAMS)
    second, its_moments = parts[1] if len(parts) == 2 else (None, None)
    _, chunk_a, sets_a = chunking(rows, channels[0])
    _, chunk_b, sets_b = chunking(rows, channels[-1])
    with on_device(x):
        norm_kernel[triton.cdiv(blocks, tiles), sum(channels) // block_c, n](
            x, second, parts[0][1], its_moments, bias, weight, shift, out, pooled,
            height * width, width, rows, channels[0] // 32, sum(channels[1:]) // 32,
            sets_a, chunk_a, sets_b, chunk_b, tiles, RESAMPLE=resample, SILU=silu,
            BLOCK_R=block_r, BLOCK_C=block_c, BLOCK_S=BLOCK_S, BLOCK_G=reach(block_c, group),
        )  # fmt: skip
    return out, pooled


def suits_whole(x: Tensor) -> bool:
    """Return whether :func:`normalize_whole_` suits such a map: a small one of many channels."""
    channels, rows = x.shape[1], x.shape[2] * x.shape[3]
    return rows <= WHOLE_ROWS and channels % (8 * GROUPS) == 0 and channels <= WHOLE_LANES * GROUPS


def normalize_whole_(
    x: Tensor, weight: Tensor, shift: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Replace x by SiLU(norm(x + bias)) in one launch that needs no moments.

    Args:
        x: [N, C, H, W] in channels_last that :func:`suits_whole`.
        weight: float32 [C] of the norm.
        shift: float32 [C] of the norm.
        bias: float32 [C] that x still lacks, or None.

    Returns:
        x.

    Raises:
        TypeError: An argument has the wrong dtype.
        ValueError: An argument has the wrong shape, layout or device.
    """
    _check("x", x, x.shape, DTYPES)
    n, channels, height, width = x.shape
    if not suits_whole(x):
        raise ValueError(
            f"x has shape {tuple(x.shape)}; expected at most {WHOLE_ROWS} pixels and a multiple of "
            f"{8 * GROUPS} channels up to {WHOLE_LANES * GROUPS}: use normalize()"
        )
    for name, vector in (("weight", weight), ("shift", shift), ("bias", bias)):
        if vector is not None:
            _check_vector(name, vector, (channels,), x.device)
    with on_device(x):
        whole_norm_kernel[GROUPS, n](
            x, bias, weight, shift, height * width, channels // (8 * GROUPS),
            BLOCK_R=NORM_ELEMENTS // WHOLE_LANES, BLOCK_C=WHOLE_LANES,
        )  # fmt: skip
    return x


def reach(block_c: int, group: int) -> int:
    """Find how many groups a block of channels may reach into, as a power of two."""
    return triton.next_power_of_2(min(-(-block_c // group) + (block_c % group > 0), GROUPS))


def _check_parts(parts, vectors: dict, resample: str, pool_input: bool) -> None:
    """Raise TypeError or ValueError unless :func:`normalize` can take these."""
    if len(parts) not in (1, 2):
        raise ValueError(f"parts holds {len(parts)} tensors; expected one or two")
    x = parts[0][0]
    n, _, height, width = x.shape
    for index, (part, its_moments) in enumerate(parts):
        shape = (n, part.shape[1], height, width)
        _check(f"parts[{index}]", part, shape, (x.dtype,) if index else DTYPES, x.device)
        sets = chunking(height * width, part.shape[1])[2]
        _check_vector(f"moments of parts[{index}]", its_moments, (n, sets, 2, shape[1]), x.device)
    if resample not in ("", "up", "down"):
        raise ValueError(f'resample is {resample!r}; expected "", "up" or "down"')
    if resample == "down" and (height % 2 or width % 2):
        raise ValueError(f"parts have {height}x{width} pixels; expected even sides to halve")
    if pool_input and (resample != "down" or len(parts) != 1):
        raise ValueError('pool_input goes with resample="down" and one part')
    for name, vector in vectors.items():
        if vector is not None:
            _check_vector(name, vector, (sum(part.shape[1] for part, _ in parts),), x.device)


def _check(name: str, x: Tensor, shape, dtypes: Sequence[torch.dtype], device=None) -> None:
    if x.ndim != 4 or tuple(x.shape) != tuple(shape) or 0 in x.shape or x.shape[1] % GROUPS:
        wanted = "[N, C, H, W]" if x.ndim != 4 else tuple(shape)
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; expected {wanted}, no side of it 0, "
            f"channels a multiple of {GROUPS}"
        )
    check_dtype(name, x, dtypes)
    if not x.permute(0, 2, 3, 1).is_contiguous():
        raise ValueError(
            f"{name} has strides {x.stride()}; expected channels_last: "
            "call .contiguous(memory_format=torch.channels_last)"
        )
    check_device(name, x, device, PRIOR_TWIN)


def _check_vector(name: str, x: Tensor, shape: tuple, device) -> None:
    check_dtype(name, x, [torch.float32])
    if tuple(x.shape) != shape or not x.is_contiguous():
        raise ValueError(
            f"{name} has shape {tuple(x.shape)} and strides {x.stride()}; "
            f"expected {shape}, contiguous"
        )
    check_device(name, x, device, PRIOR_TWIN)
