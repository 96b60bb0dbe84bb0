"""The moments that the prior's kernels store for norms: their chunks, and how groups merge them.

Moments are float32 [N, sets, 2, C]: mean and sum of squared deviations of each channel over each
``chunk`` of the rows of an image. The kernel that normalizes merges them, in one fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

EPS = tl.constexpr(1e-5)
NARROW = 128
"""channels of a result up to which a 3x3 convolution goes row by row"""
MOST_SETS = 128
"""most sets of moments per image: about one program of eight warps for each SM of a large GPU"""
BLOCK_S = 64
"""sets that are merged at once"""


@triton.jit
def merged(
    ptr, bias_ptr, n, rows, first, channels, sets, chunk, lane, group, pivot, sums, squares,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Add a part's deviations from the pivot [BLOCK_G], and their squares, to those of groups."""
    for start in range(0, sets, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)[:, None]
        count = tl.minimum(tl.maximum(rows - s * chunk, 0), chunk).to(tl.float32)
        for j in range(group):
            channel = lane[None, :] * group + j - first
            inside = (s < sets) & (channel >= 0) & (channel < channels)
            at = ptr + (n * sets + s) * 2 * channels + channel
            mean = tl.load(at, inside, other=0.0)
            if bias_ptr is not None:
                mean += tl.load(bias_ptr + first + channel, inside, other=0.0)
            apart = tl.where(inside, mean - pivot[None, :], 0.0)
            sums += count * apart
            squares += tl.load(at + channels, inside, other=0.0) + count * apart * apart
    return sums, squares


@triton.jit
def statistics(
    a_ptr, b_ptr, bias_ptr, n, rows, channels_a, channels, sets_a, chunk_a, sets_b, chunk_b, first,
    BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Find mean and 1/√(var + eps) [BLOCK_G] of groups from ``first`` on, of 32 in all.

    The channels are those of one part, or of two side by side, plus a bias not yet added. Sums are
    of deviations from a mean within the group, so that they keep their digits.
    """
    group = channels // 32
    lane = first + tl.arange(0, BLOCK_G)
    start = lane * group
    pivot = tl.load(a_ptr + n * sets_a * 2 * channels_a + start, start < channels_a, other=0.0)
    if b_ptr is not None:
        channels_b = channels - channels_a
        pivot += tl.load(
            b_ptr + n * sets_b * 2 * channels_b + start - channels_a,
            (start >= channels_a) & (start < channels),
            other=0.0,
        )
    if bias_ptr is not None:
        pivot += tl.load(bias_ptr + start, start < channels, other=0.0)
    sums = tl.zeros([BLOCK_S, BLOCK_G], tl.float32)
    squares = tl.zeros([BLOCK_S, BLOCK_G], tl.float32)
    sums, squares = merged(
        a_ptr,
        bias_ptr,
        n,
        rows,
        0,
        channels_a,
        sets_a,
        chunk_a,
        lane,
        group,
        pivot,
        sums,
        squares,
        BLOCK_S,
    )
    if b_ptr is not None:
        sums, squares = merged(
            b_ptr, bias_ptr, n, rows, channels_a, channels - channels_a, sets_b, chunk_b, lane,
            group, pivot, sums, squares, BLOCK_S,
        )  # fmt: skip
    total = rows.to(tl.float32) * group.to(tl.float32)
    apart = tl.sum(sums, 0) / total
    var = tl.maximum(tl.sum(squares, 0) / total - apart * apart, 0.0)
    return pivot + apart, tl.div_rn(1.0, tl.sqrt_rn(var + EPS))


def blocks(outs: int) -> tuple[int, int]:
    """Return (BLOCK_M, BLOCK_N) for a result's number of channels, whatever the image."""
    if outs <= 16:
        return 128, 16
    if outs > NARROW and outs % 128 == 0:
        return 128, 128
    return (128, 32) if outs == 32 else (64, 32)  # more channels are on smaller maps


def chunking(rows: int, channels: int) -> tuple[int, int, int]:
    """Return (tiles of a program, rows of its chunk, chunks) for a result's rows and channels.

    They depend on the size alone, so that every GPU sums in the same order.
    """
    pixels = blocks(channels)[0] - 2
    tiles = triton.cdiv(triton.cdiv(rows, pixels), MOST_SETS)
    return tiles, tiles * pixels, triton.cdiv(rows, tiles * pixels)
