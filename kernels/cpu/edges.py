"""``edges.cpp``: a network's input before its first layer, and its output after the last.

    gather   pixels to channels, which come last in memory
    spread   channels to pixels, mixed with x_t

Each is one pass. Their twins are ``torch.nn.functional.pixel_unshuffle`` and ``pixel_shuffle`` with
``priors.timesteps.mixed``; the bytes are the same, for any number of threads.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import torch
from torch import Tensor

from . import build, memory, prebuilt

SOURCE = prebuilt.HERE / "edges.cpp"
EDGE = struct.Struct("6P7q")
SIDES = (1, 2, 4)
"""sides of the squares of pixels that become channels"""
DTYPES = (torch.float32, torch.bfloat16)


class Library(build.Functions):
    """The compiled functions."""

    STRUCTS = {"gather": EDGE, "spread": EDGE}


@lru_cache(maxsize=1)
def load() -> tuple[Library | None, str | None]:
    """Find the functions in the library that ``build`` loads once, or None and the reason."""
    return build.functions(Library)


def gather(x: Tensor, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn every square of ``side`` × ``side`` pixels of x into one pixel with more channels.

    Args:
        x: [N, C, H, W] float32 without gaps, H and W multiples of ``side``.
        side: One of ``SIDES``.
        dtype: The result's, one of ``DTYPES``.

    Returns:
        [N, C side², H / side, W / side], channels_last.

    Raises:
        RuntimeError: The kernels cannot be used here.
        ValueError: Shape, dtype, device, strides, alignment or side are wrong.
    """
    compiled = _library()
    n, c, height, width = x.shape
    _check(side, dtype, height, width)
    memory.check("x", x, x.shape)
    h, w, depth = height // side, width // side, c * side * side
    strides = h * w * depth, 1, w * depth, depth
    to = memory.empty_strided((n, depth, h, w), strides, dtype)
    compiled.run(
        "gather", x.data_ptr(), 0, 0, 0, to.data_ptr(), compiled.team,
        n, c, h, w, side, dtype is not torch.float32, 0,
    )  # fmt: skip
    return to


def spread(out: Tensor, side: int, x: Tensor, of_x: Tensor, of_out: Tensor) -> Tensor:
    """Turn channels of ``out`` back into pixels, times ``of_out``, plus x times ``of_x``.

    Args:
        out: [N, C side², H / side, W / side], channels_last, of a dtype of ``DTYPES``.
        side: One of ``SIDES``.
        x: [N, C, H, W] float32 without gaps.
        of_x: Float32 [1] or [N], without gaps.
        of_out: Likewise.

    Returns:
        [N, C, H, W] float32.

    Raises:
        RuntimeError: The kernels cannot be used here.
        ValueError: Shape, dtype, device, strides, alignment or side are wrong.
    """
    compiled = _library()
    n, c, height, width = x.shape
    _check(side, out.dtype, height, width)
    memory.check("x", x, x.shape)
    shape = n, height // side, width // side, c * side * side
    memory.check("out", out.permute(0, 2, 3, 1), shape, out.dtype)
    factors = of_x.numel()
    for name, factor in (("of_x", of_x), ("of_out", of_out)):
        memory.check(name, factor.reshape(-1), (factors,))
    if factors not in (1, n):
        raise ValueError(f"of_x of {factors} factors, expected 1 or {n}, one an image")
    to = memory.empty(n, c, height, width)
    compiled.run(
        "spread", out.data_ptr(), x.data_ptr(), of_x.data_ptr(), of_out.data_ptr(), to.data_ptr(),
        compiled.team, n, c, *shape[1:3], side, out.dtype is not torch.float32, factors,
    )  # fmt: skip
    return to


def _library() -> Library:
    found, reason = load()
    if found is None:
        raise RuntimeError(f"the CPU kernels cannot be used: {reason}")
    return found


def _check(side: int, dtype: torch.dtype, height: int, width: int) -> None:
    if side not in SIDES or dtype not in DTYPES:
        raise ValueError(f"side {side} and {dtype}; expected one of {SIDES} and of {DTYPES}")
    if height % side or width % side:
        raise ValueError(f"{height}x{width} pixels; expected multiples of side {side}")
