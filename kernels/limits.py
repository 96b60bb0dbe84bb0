"""The limits by which a fused luma is stretched, on a GPU: exact order statistics by counting.

Twin: ``ddfm_fast.images.stretch.stretch_limits``, whose ``kthvalue`` runs on one multiprocessor.
Here the float's bits are read as an integer that grows with the float, and a rank is followed
through its four bytes from the highest on: among the values that share the answer's bytes so far,
the counts of the next byte tell which one is the answer's.

    digit_kernel     counts of the next byte in each part of an image, for both ranks
    extremes_kernel  least and greatest of each part, of one image or of two together
    limits_kernel    the last byte → the two values → limits

Counts are integers and every part writes its own, so there is no atomic operation, and the same
call gives the same bytes. Nothing waits for the host, so a graph can capture it. As in
``kthvalue``, NaN counts as the greatest value. The kernels agree with their twin in Triton's
interpreter; they have not run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddfm_fast.images.stretch import FLAT, MARGIN, outside

from .checks import check_plane, jit_once, on_device

DIGITS = 4
"""bytes of a float"""
BLOCK, BLOCK_PARTS = 1024, 8
"""pixels that are counted at a time, and parts whose counts are added up at a time"""
MOST_PARTS = 64
"""most parts of an image; each part is a program of a launch, and adds up the counts of all"""
_BINS, _ALL = tl.constexpr(256), tl.constexpr(0xFFFFFFFF)
_SIGN = tl.constexpr(0x80000000)
_FLAT, _MARGIN = tl.constexpr(FLAT), tl.constexpr(MARGIN)


@triton.jit
def _key(x):
    """Map a float to an unsigned number that grows with it; NaN gets the greatest."""
    bits = x.to(tl.uint32, bitcast=True)
    key = tl.where(bits >= _SIGN, bits ^ _ALL, bits | _SIGN)
    return tl.where(x != x, _ALL, key)


@triton.jit
def _value(key):
    """Return the float of a key."""
    bits = tl.where(key >= _SIGN, key ^ _SIGN, key ^ _ALL)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _follow(counts_ptr, prefix, rank, parts, BLOCK_PARTS: tl.constexpr):
    """Add up all parts' counts; return the prefix, one byte longer, and the rank within it."""
    bins = tl.arange(0, _BINS)
    total = tl.zeros([_BINS], tl.int32)
    for start in range(0, parts, BLOCK_PARTS):
        part = start + tl.arange(0, BLOCK_PARTS)[:, None]
        at = part * (2 * _BINS) + bins[None, :]
        total += tl.sum(tl.load(counts_ptr + at, part < parts, other=0), 0)
    digit = tl.sum((tl.cumsum(total, 0) <= rank).to(tl.int32), 0)
    rank -= tl.sum(tl.where(bins < digit, total, 0), 0)
    return (prefix << 8) | digit.to(tl.uint32), rank


@triton.jit
def _state(state_ptr, counts_ptr, n, which, rank, parts, DIGIT, BLOCK_PARTS: tl.constexpr):
    """Load what is known of a value after DIGIT bytes: its prefix, and its rank within that.

    state: int32 [3, N, 2, 2], counts: int32 [4, N, parts, 2, 256].
    """
    images = tl.num_programs(1)
    counts_ptr += ((DIGIT - 1) * images + n).to(tl.int64) * parts * 2 * _BINS
    prefix = tl.full((), 0, tl.uint32)
    if DIGIT > 1:
        before = state_ptr + (((DIGIT - 2) * images + n) * 2 + which) * 2
        prefix = tl.load(before).to(tl.uint32, bitcast=True)
        rank = tl.load(before + 1)
        counts_ptr += which * _BINS
    return _follow(counts_ptr, prefix, rank, parts, BLOCK_PARTS)


@triton.jit
def _keep(state_ptr, n, which, prefix, rank, DIGIT):
    to = state_ptr + (((DIGIT - 1) * tl.num_programs(1) + n) * 2 + which) * 2
    tl.store(to, prefix.to(tl.int32, bitcast=True))
    tl.store(to + 1, rank)


@jit_once
def digit_kernel(
    y_ptr,  # float32 [N, 1, H, W] by its strides
    counts_ptr,  # int32 [4, N, parts, 2, 256]: earlier digits' in, DIGIT's out
    state_ptr,  # int32 [3, N, 2, 2]: prefix and rank of both values after 1, 2 and 3 bytes
    pixels,  # H · W
    width,  # W
    parts,
    rank_low,  # from 0
    rank_high,
    n_stride,
    h_stride,
    w_stride,
    DIGIT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """Count, in a part, the next byte of values with either prefix. Grid: (parts, N)."""
    part, n = tl.program_id(0), tl.program_id(1)
    low = tl.full((), 0, tl.uint32)
    high = tl.full((), 0, tl.uint32)
    if DIGIT > 0:
        low, rank_low = _state(state_ptr, counts_ptr, n, 0, rank_low, parts, DIGIT, BLOCK_PARTS)
        high, rank_high = _state(state_ptr, counts_ptr, n, 1, rank_high, parts, DIGIT, BLOCK_PARTS)
        if part == 0:
            _keep(state_ptr, n, 0, low, rank_low, DIGIT)
            _keep(state_ptr, n, 1, high, rank_high, DIGIT)
    y_ptr += n.to(tl.int64) * n_stride
    count_low = tl.zeros([_BINS], tl.int32)
    count_high = tl.zeros([_BINS], tl.int32)
    for start in range(part * BLOCK, pixels, parts * BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < pixels
        y = tl.load(y_ptr + at // width * h_stride + at % width * w_stride, inside, other=0.0)
        key = _key(y)
        digit = ((key >> (24 - 8 * DIGIT)) & 255).to(tl.int32)
        if DIGIT == 0:
            count_low += tl.histogram(digit, _BINS, inside)
        else:
            begins = key >> (32 - 8 * DIGIT)
            count_low += tl.histogram(digit, _BINS, inside & (begins == low))
            count_high += tl.histogram(digit, _BINS, inside & (begins == high))
    to = (DIGIT * tl.num_programs(1) + n).to(tl.int64) * parts + part
    counts_ptr += to * 2 * _BINS + tl.arange(0, _BINS)
    tl.store(counts_ptr, count_low)
    if DIGIT > 0:
        tl.store(counts_ptr + _BINS, count_high)


@triton.jit
def _extremes(x_ptr, least, most, pixels, width, h_stride, w_stride, BLOCK: tl.constexpr):
    for start in range(tl.program_id(0) * BLOCK, pixels, tl.num_programs(0) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < pixels
        x = tl.load(x_ptr + at // width * h_stride + at % width * w_stride, inside, other=0.0)
        key = _key(x)
        least = tl.minimum(least, tl.where(inside, key, _ALL))
        most = tl.maximum(most, tl.where(inside, key, 0))
    return least, most


@jit_once
def extremes_kernel(
    a_ptr,  # float32 [N, 1, H, W] by its strides
    b_ptr,  # float32 [N, 1, H, W], as a except for the stride of images; or None
    keys_ptr,  # out: int32 [N, parts, 2], least and greatest, as keys
    pixels,  # H · W
    width,  # W
    a_n_stride,
    b_n_stride,
    h_stride,
    w_stride,
    BLOCK: tl.constexpr,
):
    """Find the least and the greatest value of a part, of a or of a and b. Grid: (parts, N)."""
    part, n = tl.program_id(0), tl.program_id(1)
    least = tl.full([BLOCK], _ALL, tl.uint32)
    most = tl.full([BLOCK], 0, tl.uint32)
    image = n.to(tl.int64)
    least, most = _extremes(
        a_ptr + image * a_n_stride, least, most, pixels, width, h_stride, w_stride, BLOCK
    )
    if b_ptr is not None:
        least, most = _extremes(
            b_ptr + image * b_n_stride, least, most, pixels, width, h_stride, w_stride, BLOCK
        )
    to = keys_ptr + (n * tl.num_programs(0) + part) * 2
    tl.store(to, tl.min(least, 0).to(tl.int32, bitcast=True))
    tl.store(to + 1, tl.max(most, 0).to(tl.int32, bitcast=True))


@triton.jit
def _ends(keys_ptr, n, parts, BLOCK: tl.constexpr):
    """Merge the parts' extremes into the image's; both are NaN if any value is."""
    part = tl.arange(0, BLOCK)
    inside = part < parts
    at = keys_ptr + (n * parts + part) * 2
    least = tl.load(at, inside, other=-1).to(tl.uint32, bitcast=True)
    most = tl.load(at + 1, inside, other=0).to(tl.uint32, bitcast=True)
    high = _value(tl.max(most, 0))
    low = _value(tl.min(least, 0))
    return tl.where(high != high, high, low), high


@jit_once
def limits_kernel(
    counts_ptr,  # int32 [4, N, parts, 2, 256], or None for "minmax"
    state_ptr,  # int32 [3, N, 2, 2]
    keys_ptr,  # int32 [N, parts, 2], or None for "percentile"
    out_ptr,  # out: float32 [2, N]
    parts,
    rank_low,
    rank_high,
    DIGITS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    MOST_PARTS: tl.constexpr,
):
    """Compute limits: percentiles, extremes, or what maps one to the other. Grid: (1, N)."""
    n = tl.program_id(1)
    if counts_ptr is None:
        low, high = _ends(keys_ptr, n, parts, MOST_PARTS)
    else:
        key, _ = _state(state_ptr, counts_ptr, n, 0, rank_low, parts, DIGITS, BLOCK_PARTS)
        low = _value(key)
        key, _ = _state(state_ptr, counts_ptr, n, 1, rank_high, parts, DIGITS, BLOCK_PARTS)
        high = _value(key)
        if keys_ptr is not None:
            least, most = _ends(keys_ptr, n, parts, MOST_PARTS)
            margin = _MARGIN * (most - least)
            least, most = tl.maximum(least - margin, 0.0), tl.minimum(most + margin, 1.0)
            flat = (high - low <= _FLAT) | (most - least <= _FLAT)
            scale = tl.div_rn(high - low, tl.where(flat, 1.0, most - least))
            zero = low - least * scale
            low, high = tl.where(flat, 0.0, zero), tl.where(flat, 1.0, zero + scale)
    tl.store(out_ptr + n, low)
    tl.store(out_ptr + tl.num_programs(1) + n, high)


def stretch_limits(stretch: str, y: Tensor, ir: Tensor, vis: Tensor) -> Tensor | None:
    """Find what ``FuseConfig.stretch`` maps to 0 and 1, without waiting for it.

    Args:
        stretch: "minmax", "percentile", "sources" or "none".
        y: float32 [N, 1, H, W] of any strides.
        ir: Luma of a source, float32 [N, 1, H, W] of any strides and a size of its own; used only
            by "sources", like ``vis``.
        vis: The other source's; has the shape of ``ir``, and its strides except for images.

    Returns:
        float32 [2, N, 1, 1, 1], equal to the twin's; None for "none".

    Raises:
        TypeError: An argument has the wrong dtype.
        ValueError: An argument has the wrong shape or device.
    """
    if stretch == "none":
        return None
    _check("y", y)
    n, pixels = len(y), y.shape[2] * y.shape[3]
    parts = max(1, min(MOST_PARTS, triton.cdiv(pixels, BLOCK)))
    rank = outside(pixels)
    ranks = rank, pixels - 1 - rank
    out = y.new_empty(2, n, 1, 1, 1)
    counts = state = keys = None
    with on_device(y):
        if stretch == "minmax":
            keys = _extremes_of(y, None, parts)
        else:
            counts, state = _count(y, parts, ranks)
            if stretch == "sources":
                _check("ir", ir)
                check_plane("vis", vis, ir.shape, [torch.float32], device=y.device, dense=False)
                if vis.stride()[2:] != ir.stride()[2:]:
                    ir, vis = ir.contiguous(), vis.contiguous()
                keys = _extremes_of(ir, vis, parts)
        limits_kernel[1, n](
            counts, state, keys, out, parts, *ranks, DIGITS=DIGITS, BLOCK_PARTS=BLOCK_PARTS,
            MOST_PARTS=MOST_PARTS, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def _check(name: str, x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] != 1:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected [N, 1, H, W]")
    check_plane(name, x, x.shape, [torch.float32], dense=False)


def _count(y: Tensor, parts: int, ranks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    n, _, height, width = y.shape
    counts = y.new_empty((DIGITS, n, parts, 2, 256), dtype=torch.int32)
    state = y.new_empty((DIGITS - 1, n, 2, 2), dtype=torch.int32)
    for digit in range(DIGITS):
        digit_kernel[parts, n](
            y, counts, state, height * width, width, parts, *ranks,
            y.stride(0), y.stride(2), y.stride(3),
            DIGIT=digit, BLOCK=BLOCK, BLOCK_PARTS=BLOCK_PARTS,
        )  # fmt: skip
    return counts, state


def _extremes_of(a: Tensor, b: Tensor | None, parts: int) -> Tensor:
    n, _, height, width = a.shape
    keys = a.new_empty((n, parts, 2), dtype=torch.int32)
    extremes_kernel[parts, n](
        a, b, keys, height * width, width, a.stride(0), 0 if b is None else b.stride(0),
        a.stride(2), a.stride(3), BLOCK=BLOCK,
    )  # fmt: skip
    return keys
