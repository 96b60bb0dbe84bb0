"""GroupNorm and what surrounds it on a GPU: a faster version of ``priors.ops.plain.PlainOps``.

Activations are in channels_last. A norm is split where statistics meet: what writes an
activation also leaves its moments, channel by channel, so that the norm reads it once.

    moments_kernel   x → moments of each channel in each chunk of rows; as ``join_`` it first
                     adds bias and residual (nearest-upsampled if asked) in place
    finish_kernel    moments of one tensor, or of two that stand side by side → a and b of
                     y = a · x + b, per image and channel, in one fixed order
    apply_kernel     y = a · x + b, SiLU, nearest upsampling or 2x2 means, in place or out

Moments per channel let a consumer group the channels as it likes: a concatenation is never
made for its norm, and the bias of the convolution before is added to the means, not to the
activation. Statistics are float32 by Welford's update and Chan's merge, whatever the dtype of
the activations; no atomics, and nothing depends on the batch or on the GPU, so the same call
gives the same bytes and a batch gives each image what it gets alone.

N images of R = H W rows and C channels; 64-bit row offsets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import DTYPES, PRIOR_TWIN, check_device, check_dtype, on_device

GROUPS = 32
EPS = 1e-5
APPLY_ELEMENTS, MOMENTS_ELEMENTS = 4096, 2048
"""of a tile: 32 per thread with 4 warps, which are four loads of 128 bits in bfloat16; half of that
where each element has a mean and a sum of squares of its own"""
CHUNK_ROWS, MOST_CHUNKS = 128, 512
"""rows that share one set of moments: at least so many, and at most so many sets per image"""
FINISH_ELEMENTS = 1024


@triton.jit
def moments_kernel(
    x_ptr,  # float32, bfloat16 or float16 [N, R, C]; in place with JOIN
    bias_ptr,  # float32 [C], or None
    residual_ptr,  # as x, or [N, R / 4, C] with UPSAMPLE, or None
    partial_ptr,  # out: float32 [N, chunks, 2, C], mean and sum of squared deviations
    rows,  # R
    channels,  # C
    chunk,  # rows that share one set of moments
    width,  # W, of use with UPSAMPLE alone
    JOIN: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Find the moments of x, or of x + bias + residual, which takes the place of x.

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
def _channel_means(
    a_ptr, b_ptr, bias_ptr, n, s, col, chunks, channels_a, channels, inside, SECOND: tl.constexpr
):
    """Load means (SECOND False) or squared deviations [BLOCK_S, BLOCK_G] of channels of a or b."""
    plane_a = (n * chunks + s) * 2 * channels_a
    plane_b = (n * chunks + s) * 2 * (channels - channels_a)
    if SECOND:
        plane_a += channels_a
        plane_b += channels - channels_a
    value = tl.load(a_ptr + plane_a + col, inside & (col < channels_a), other=0.0)
    if b_ptr is not None:
        of_b = inside & (col >= channels_a)
        value += tl.load(b_ptr + plane_b + col - channels_a, of_b, other=0.0)
    if bias_ptr is not None and not SECOND:
        value += tl.load(bias_ptr + col, inside, other=0.0)
    return value


@triton.jit
def finish_kernel(
    a_ptr,  # float32 [N, chunks, 2, C_a]: moments of the first C_a channels
    b_ptr,  # float32 [N, chunks, 2, C − C_a]: of the others, or None
    bias_ptr,  # float32 [C] that the activation still lacks, or None
    weight_ptr,  # float32 [C]: the norm's own scale
    shift_ptr,  # float32 [C]: and shift
    out_ptr,  # out: float32 [N, 2, C], a and b
    rows,  # R
    chunk,
    chunks,
    channels_a,  # C_a
    channels,  # C
    eps,
    GROUP: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Compute a = weight / √(var + eps) and b = shift + (bias − mean) · a of each group.

    Two passes over the moments: mean first, then the deviations from it. Grid: (groups, N).
    """
    n = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK_G)[None, :]
    col = tl.program_id(0) * GROUP + lane
    total = rows.to(tl.float32) * GROUP
    sums = tl.zeros([BLOCK_S, BLOCK_G], tl.float32)
    for start in range(0, chunks, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)[:, None]
        inside = (s < chunks) & (lane < GROUP)
        count = tl.minimum(tl.maximum(rows - s * chunk, 0), chunk).to(tl.float32)
        sums += count * _channel_means(
            a_ptr, b_ptr, bias_ptr, n, s, col, chunks, channels_a, channels, inside, False
        )
    mean = tl.sum(tl.sum(sums, 1), 0) / total
    squares = tl.zeros([BLOCK_S, BLOCK_G], tl.float32)
    for start in range(0, chunks, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)[:, None]
        inside = (s < chunks) & (lane < GROUP)
        count = tl.minimum(tl.maximum(rows - s * chunk, 0), chunk).to(tl.float32)
        means = _channel_means(
            a_ptr, b_ptr, bias_ptr, n, s, col, chunks, channels_a, channels, inside, False
        )
        squares += _channel_means(
            a_ptr, b_ptr, bias_ptr, n, s, col, chunks, channels_a, channels, inside, True
        )
        squares += tl.where(inside, count * (means - mean) * (means - mean), 0.0)
    var = tl.sum(tl.sum(squares, 1), 0) / total
    one = tl.program_id(0) * GROUP + tl.arange(0, BLOCK_G)
    mine = tl.arange(0, BLOCK_G) < GROUP
    a = tl.load(weight_ptr + one, mine) * tl.div_rn(1.0, tl.sqrt_rn(var + eps))
    offset = -mean
    if bias_ptr is not None:
        offset += tl.load(bias_ptr + one, mine)
    out_ptr += n * 2 * channels
    tl.store(out_ptr + one, a, mine)
    tl.store(out_ptr + channels + one, tl.load(shift_ptr + one, mine) + offset * a, mine)


@triton.jit
def _affine(x, a, b, SILU: tl.constexpr):
    y = x * a + b
    if SILU:
        y = y * tl.sigmoid(y)
    return y


@triton.jit
def apply_kernel(
    x_ptr,  # float32, bfloat16 or float16 [N, R_x, C]
    scale_shift_ptr,  # float32 [N, 2, C_y]: a and b
    y_ptr,  # out, as x: [N, R, C_y]; x itself is allowed without resampling
    pooled_ptr,  # out: 2x2 means of x itself [N, R, C], or None
    rows,  # R, of y
    width,  # W of y, of use with resampling alone
    channels,  # C
    channels_y,  # C_y
    first,  # the channel of y that x's first one becomes
    RESAMPLE: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Store y[..., first : first + C] = SiLU(a · x + b), nearest-upsampled ("up") or 2x2 means.

    Grid: (tiles of rows, C / BLOCK_C, N).
    """
    n = tl.program_id(2).to(tl.int64)
    col = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    inside = row < rows
    a_ptr = scale_shift_ptr + n * 2 * channels_y + first
    a, b = tl.load(a_ptr + col), tl.load(a_ptr + channels_y + col)
    if RESAMPLE == "down":
        row_x = (row // width) * 4 * width + row % width * 2
        at = (n * rows * 4 + row_x) * channels + col
        at_below = (n * rows * 4 + row_x + 2 * width) * channels + col
        x = tl.load(x_ptr + at, inside, other=0.0).to(tl.float32)
        raw, y = x, _affine(x, a, b, SILU)
        x = tl.load(x_ptr + at + channels, inside, other=0.0).to(tl.float32)
        raw, y = raw + x, y + _affine(x, a, b, SILU)
        x = tl.load(x_ptr + at_below, inside, other=0.0).to(tl.float32)
        raw, y = raw + x, y + _affine(x, a, b, SILU)
        x = tl.load(x_ptr + at_below + channels, inside, other=0.0).to(tl.float32)
        raw, y = (raw + x) * 0.25, (y + _affine(x, a, b, SILU)) * 0.25
        if pooled_ptr is not None:
            tl.store(pooled_ptr + (n * rows + row) * channels + col, raw, inside)
    else:
        if RESAMPLE == "up":
            row_x = (row // width // 2) * (width // 2) + row % width // 2
            at = (n * (rows // 4) + row_x) * channels + col
        else:
            at = (n * rows + row) * channels + col
        x = tl.load(x_ptr + at, inside, other=0.0).to(tl.float32)
        y = _affine(x, a, b, SILU)
    tl.store(y_ptr + (n * rows + row) * channels_y + first + col, y, inside)


def chunking(rows: int) -> tuple[int, int]:
    """Give (rows of a chunk, chunks), a function of the size alone: every GPU sums alike."""
    chunk = max(CHUNK_ROWS, triton.cdiv(rows, MOST_CHUNKS))
    chunk = triton.cdiv(chunk, 16) * 16
    return chunk, triton.cdiv(rows, chunk)


def tile(elements: int, *channels: int) -> tuple[int, int]:
    """Give (BLOCK_R, BLOCK_C) for these numbers of channels: no tile reaches past one's last."""
    block_c = min(128, math.gcd(*channels) & -math.gcd(*channels))
    return elements // block_c, block_c


def moments(x: Tensor) -> Tensor:
    """Find the mean and the sum of squared deviations of each channel, chunk by chunk.

    Args:
        x: [N, C, H, W] in channels_last, float32, bfloat16 or float16, C a multiple of 32.

    Returns:
        float32 [N, chunks, 2, C].

    Raises:
        TypeError: x is of another dtype.
        ValueError: x is of another shape, layout or device.
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
        TypeError: An argument is of another dtype.
        ValueError: An argument is of another shape, layout or device.
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
    chunk, chunks = chunking(height * width)
    block_r, block_c = tile(MOMENTS_ELEMENTS, c)
    partial = torch.empty(n, chunks, 2, c, device=x.device)
    with on_device(x):
        moments_kernel[chunks, c // block_c, n](
            x, bias, residual, partial, height * width, c, chunk, width,
            JOIN=join, UPSAMPLE=upsample, BLOCK_R=block_r, BLOCK_C=block_c,
        )  # fmt: skip
    return partial


def scale_shift(
    parts: Sequence[Tensor],
    rows: int,
    weight: Tensor,
    shift: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Turn moments into a and b of the norm y = a · x + b over 32 groups of channels.

    Args:
        parts: The :func:`moments` of one tensor, or of two whose channels stand side by side.
        rows: H W of each.
        weight: float32 [C] of the norm.
        shift: float32 [C] of the norm.
        bias: float32 [C] that x still lacks, or None.

    Returns:
        float32 [N, 2, C].

    Raises:
        TypeError: An argument is of another dtype.
        ValueError: An argument is of another shape, layout or device.
    """
    if len(parts) not in (1, 2):
        raise ValueError(f"parts holds {len(parts)} tensors; expected one or two")
    a = parts[0]
    b = parts[1] if len(parts) == 2 else None
    chunk, chunks = chunking(rows)
    n, channels = a.shape[0], sum(p.shape[-1] for p in parts)
    for index, part in enumerate(parts):
        _check_vector(f"parts[{index}]", part, (n, chunks, 2, part.shape[-1]), a.device)
    if channels % GROUPS:
        raise ValueError(f"parts have {channels} channels; expected a multiple of {GROUPS}")
    for name, vector in (("weight", weight), ("shift", shift), ("bias", bias)):
        if vector is not None:
            _check_vector(name, vector, (channels,), a.device)
    out = torch.empty(n, 2, channels, device=a.device)
    block_g = triton.next_power_of_2(channels // GROUPS)
    with on_device(a):
        finish_kernel[GROUPS, n](
            a, b, bias, weight, shift, out, rows, chunk, chunks, a.shape[-1], channels, EPS,
            GROUP=channels // GROUPS, BLOCK_S=max(FINISH_ELEMENTS // block_g, 1), BLOCK_G=block_g,
        )  # fmt: skip
    return out


def apply(
    parts: Sequence[Tensor],
    affine: Tensor,
    *,
    silu: bool = True,
    resample: str = "",
    out: Tensor | None = None,
    pool_input: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Apply a norm and SiLU to x, or to two tensors side by side: y = SiLU(a · x + b).

    Args:
        parts: One or two tensors [N, C, H, W] of one dtype in channels_last.
        affine: a and b, from :func:`scale_shift`.
        silu: Whether SiLU follows the norm.
        resample: "", "up" (nearest, twice the size) or "down" (2x2 means of y).
        out: Where y goes, which may be the single part without resampling; a new tensor by default.
        pool_input: Whether to return the 2x2 means of x, with "down" and a single part.

    Returns:
        y, and the 2x2 means of x or None.

    Raises:
        TypeError: An argument is of another dtype.
        ValueError: An argument is of another shape, layout or device, or does not go with another.
    """
    _check_parts(parts, affine, resample, pool_input)
    x, channels = parts[0], affine.shape[2]
    n, _, height, width = x.shape
    if resample == "up":
        height, width = 2 * height, 2 * width
    elif resample == "down":
        height, width = height // 2, width // 2
    shape = (n, channels, height, width)
    if out is None:
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _check("out", out, shape, (x.dtype,), x.device)
    pooled = torch.empty_like(out) if pool_input else None
    block_r, block_c = tile(APPLY_ELEMENTS, *(part.shape[1] for part in parts))
    if resample == "down":
        block_r //= 4  # four rows are read for one
    first = 0
    for part in parts:
        grid = (triton.cdiv(height * width, block_r), part.shape[1] // block_c, n)
        with on_device(x):
            apply_kernel[grid](
                part, affine, out, pooled, height * width, width, part.shape[1], channels, first,
                RESAMPLE=resample, SILU=silu, BLOCK_R=block_r, BLOCK_C=block_c,
            )  # fmt: skip
        first += part.shape[1]
    return out, pooled


def _check_parts(parts: Sequence[Tensor], affine: Tensor, resample: str, pool_input: bool) -> None:
    """Raise TypeError or ValueError unless :func:`apply` can take these."""
    x = parts[0]
    n, _, height, width = x.shape
    for index, part in enumerate(parts):
        shape = (n, part.shape[1], height, width)
        _check(f"parts[{index}]", part, shape, (x.dtype,) if index else DTYPES, x.device)
    if resample not in ("", "up", "down"):
        raise ValueError(f'resample is {resample!r}; expected "", "up" or "down"')
    if resample == "down" and (height % 2 or width % 2):
        raise ValueError(f"parts have {height}x{width} pixels; expected even sides to halve")
    if pool_input and (resample != "down" or len(parts) != 1):
        raise ValueError('pool_input goes with resample="down" and one part')
    _check_vector("affine", affine, (n, 2, sum(part.shape[1] for part in parts)), x.device)


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
