"""3x3 convolutions with few channels on one side: a faster version of ``F.conv2d`` on a GPU.

They are a network's first and last layer. Their arithmetic is little and their traffic the whole
plane, which libraries' tiles, made for many channels, do not come near. An implicit matrix product:
a tile of pixels times a tile of outputs, over the nine taps and the channels, summed in float32.

Whether it is faster than cuDNN has not been measured: no GPU has run it, nothing uses it by default
(``FusedOps(thin_convs=True)`` does), and section ``official`` of the benchmark times both.

N images of H x W pixels in channels_last; 64-bit image offsets.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import DTYPES, INTERPRETED, PRIOR_TWIN, check_device, on_device

TAPS = 9
MOST_THIN = 16
"""channels on the thin side: at most one tile of the tensor cores"""
MOST_ELEMENTS = 2**31 - 1
"""of an image before and after: offsets inside one are 32-bit"""


@triton.jit
def thin_conv_kernel(
    x_ptr,  # float32, bfloat16 or float16 [N, H, W, C]
    weight_ptr,  # as x [9, C, O]
    bias_ptr,  # float32 [O], or None
    y_ptr,  # out: as x [N, H, W, O]
    height,
    width,
    outs,  # O
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,  # to float32 before the product: the interpreter has none of bfloat16
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute y = conv(x) + bias with zeros around x. Grid: (H W / BLOCK_M, O / BLOCK_N, N).

    The sum runs over K = 9 C, tap by tap. Where a block of it lies within one tap, rows are read
    at that tap's offset; where C is smaller, each column finds its own.
    """
    n = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    out = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row, column = pixel // width, pixel % width
    real = row < height
    image = x_ptr + n * height * width * CHANNELS
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, 9 * CHANNELS, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if CHANNELS % BLOCK_K == 0:
            tap = start // CHANNELS
            y, x = row + tap // 3 - 1, column + tap % 3 - 1
            inside = real & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            at = (y * width + x)[:, None] * CHANNELS + (k - tap * CHANNELS)[None, :]
            a = tl.load(image + at, inside[:, None], other=0.0)
            b = tl.load(
                weight_ptr + k[:, None] * outs + out[None, :], out[None, :] < outs, other=0.0
            )
        else:
            taps = k // CHANNELS
            y = row[:, None] + (taps // 3 - 1)[None, :]
            x = column[:, None] + (taps % 3 - 1)[None, :]
            inside = real[:, None] & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            inside = inside & (k < 9 * CHANNELS)[None, :]
            at = (y * width + x) * CHANNELS + (k % CHANNELS)[None, :]
            a = tl.load(image + at, inside, other=0.0)
            there = (k < 9 * CHANNELS)[:, None] & (out < outs)[None, :]
            b = tl.load(weight_ptr + k[:, None] * outs + out[None, :], there, other=0.0)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + out, out < outs, other=0.0)[None, :]
    to = n * height * width * outs + pixel[:, None].to(tl.int64) * outs + out[None, :]
    tl.store(y_ptr + to, total.to(y_ptr.dtype.element_ty), real[:, None] & (out < outs)[None, :])


def tiles(channels: int, outs: int) -> tuple[int, int, int]:
    """Choose BLOCK_M, BLOCK_N, BLOCK_K for C and O: the thin side is one tile of tensor cores."""
    if channels <= MOST_THIN:
        return 64, min(128, max(16, triton.next_power_of_2(outs))), 32
    return 128, 16, 64 if channels % 64 == 0 else 32


def pack(weight: Tensor) -> Tensor:
    """Lay [O, C, 3, 3] out as :func:`thin_conv` reads it: [9, C, O]."""
    return weight.permute(2, 3, 1, 0).reshape(TAPS, *weight.shape[1::-1]).contiguous()


def suits(weight: Tensor) -> bool:
    """Say whether a weight [O, C, k, k] is one that :func:`thin_conv` is for."""
    outs, channels, kernel, _ = weight.shape
    thin = channels <= MOST_THIN or (outs <= MOST_THIN and channels % 32 == 0)
    return kernel == 3 and thin


def thin_conv(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``F.conv2d(x, weight, bias, padding=1)`` with sums in float32.

    Where both sides have more than ``MOST_THIN`` channels it is slow.

    Args:
        x: [N, C, H, W] in channels_last, float32, bfloat16 or float16.
        packed: The weight from :func:`pack`, of x's dtype.
        bias: float32 [O] or None.

    Returns:
        [N, O, H, W] in channels_last, of x's dtype.

    Raises:
        TypeError: An argument is of another dtype.
        ValueError: An argument is of another shape, layout or device.
    """
    n, channels, height, width = x.shape
    outs = packed.shape[2]
    if x.dtype not in DTYPES or packed.dtype != x.dtype:
        raise TypeError(f"x is {x.dtype} and packed {packed.dtype}; expected one of {DTYPES} twice")
    if tuple(packed.shape) != (TAPS, channels, outs) or not packed.is_contiguous():
        raise ValueError(
            f"packed has shape {tuple(packed.shape)}; expected {(TAPS, channels, 'O')} from pack()"
        )
    if not x.permute(0, 2, 3, 1).is_contiguous():
        raise ValueError(f"x has strides {x.stride()}; expected channels_last")
    if height * width * max(channels, outs) > MOST_ELEMENTS:
        raise ValueError(f"x has {height}x{width} pixels; expected fewer, or strips of rows")
    for name, tensor in (("x", x), ("packed", packed), ("bias", bias)):
        if tensor is not None:
            check_device(name, tensor, x.device, PRIOR_TWIN)
    y = torch.empty(
        (n, outs, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    block_m, block_n, block_k = tiles(channels, outs)
    grid = triton.cdiv(height * width, block_m), triton.cdiv(outs, block_n), n
    with on_device(x):
        thin_conv_kernel[grid](
            x, packed, bias, y, height, width, outs, CHANNELS=channels,
            PRECISION="tf32" if _tf32() else "ieee", WIDEN=INTERPRETED,
            BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
        )  # fmt: skip
    return y


def _tf32() -> bool:
    """Say whether float32 convolutions may be rounded to TF32, by PyTorch's setting for cuDNN."""
    setting = getattr(torch.backends.cudnn, "conv", None)
    precision = getattr(setting, "fp32_precision", None)
    if precision is not None:
        return precision == "tf32"
    return torch.backends.cudnn.allow_tf32  # PyTorch before 2.9
