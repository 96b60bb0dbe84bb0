"""``bands.cpp``: faster versions of parts of ``ddfm_fast.target``, float32 on a CPU.

    fuse_level    a level of the result of ``choose`` from the coarser one
    smooth_twice  ``smooth(smooth(x))``
    sky           ``terms.sky`` of local means and mean squares

Each is one pass over memory, and gives the same for any number of threads.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from . import build, memory

SOURCE = build.HERE / "bands.cpp"
# the structs of bands.cpp
LEVEL, TWICE, SKY = struct.Struct("10P3q6d"), struct.Struct("3P2q"), struct.Struct("4P2q4d")


class Terms(Protocol):
    """The numbers of ``ddfm_fast.target.choose.Terms`` that bands need."""

    @property
    def share(self) -> float: ...
    @property
    def gain(self) -> float: ...
    @property
    def coring(self) -> float: ...
    @property
    def sky_coring(self) -> float: ...
    @property
    def sky_share(self) -> float: ...


class Library:
    """The compiled functions, and what runs them on several threads."""

    def __init__(self, library: ctypes.CDLL, team: int):
        self.team = team
        self.level, self.twice = library.ddfm_level, library.ddfm_twice
        self.sky = library.ddfm_sky
        for function in (self.level, self.twice, self.sky):
            function.argtypes = [ctypes.c_char_p, ctypes.c_int64]
        numbers = library.ddfm_level_bytes, library.ddfm_twice_bytes, library.ddfm_sky_bytes
        for number in numbers:
            number.restype = ctypes.c_int64
        if [number() for number in numbers] != [s.size for s in (LEVEL, TWICE, SKY)]:
            raise RuntimeError("structs of the compiled code have other sizes than here")


def status() -> str | None:
    """Say why this cannot be used here, or None where it can; compiles on first use."""
    return load()[1]


@lru_cache(maxsize=1)
def load() -> tuple[Library | None, str | None]:
    """Find the functions in the library that ``build`` loads once, or None and the reason."""
    return load_again()


def load_again() -> tuple[Library | None, str | None]:
    """Do so without looking at what was found before."""
    found, reason = build.load()
    if found is None:
        return None, reason
    try:
        return Library(found.shared, found.team), None
    except (AttributeError, RuntimeError) as error:
        return None, str(error)


def library() -> Library:
    """Give the compiled functions; RuntimeError with the reason where :func:`status` has one."""
    found, reason = load()
    if found is None:
        raise RuntimeError(f"the CPU kernels cannot be used: {reason}")
    return found


def fuse_level(
    sources: tuple[Tensor, Tensor],
    coarse: tuple[Tensor, Tensor],
    result: Tensor,
    maps: Sequence[Tensor | None],
    terms: Terms,
    margin: float = 0.0,
) -> Tensor:
    """Compute a level of the fused pyramid from the coarser one.

    Args:
        sources: Of the sources' Gaussian pyramids, planes [H, W], both at least 4.
        coarse: The next coarser ones, [ceil(H/2), ceil(W/2)], as ``result`` is.
        result: The coarser level of the fused pyramid.
        maps: Conflict, pick and sky, None where a term is off; all of the level, or all of the
            coarser level, to be doubled. Conflict and pick count together only.
        terms: Their numbers.
        margin: Times the brighter source that the result may be at most, clamped to [0, 1]; 0: any
            result.

    Returns:
        The result [H, W]; planes are float32 without gaps, here and above.

    Raises:
        RuntimeError: :func:`status` has a reason.
        ValueError: Shape, dtype, device, strides or alignment are others.
        MemoryError: There is no memory for scratch.
    """
    compiled = library()
    height, width = size = _size(sources[0])
    half = _half(size)
    conflict, pick, sky = maps
    known = [plane for plane in (conflict, pick, sky) if plane is not None]
    halved = bool(known) and tuple(known[0].shape) == half
    for plane in sources:
        memory.check("plane", plane, size)
    for plane in (*coarse, result):
        memory.check("plane", plane, half)
    for plane in known:
        memory.check("plane", plane, half if halved else size)
    out = memory.empty(*size)
    addresses = (0 if plane is None else plane.data_ptr() for plane in (conflict, pick, sky))
    call = LEVEL.pack(
        *(plane.data_ptr() for plane in (*sources, *coarse, result)), *addresses, out.data_ptr(),
        compiled.team, height, width, halved,
        terms.share, terms.gain, terms.coring, terms.sky_coring, terms.sky_share, margin,
    )  # fmt: skip
    _run(compiled.level, call)
    return out


def smooth_twice(plane: Tensor) -> Tensor:
    """Smooth a plane [H, W], both at least 2, by ``pyramid.smooth`` twice."""
    compiled, (height, width) = library(), _size(plane, 2)
    out = memory.empty(height, width)
    call = TWICE.pack(plane.data_ptr(), out.data_ptr(), compiled.team, height, width)
    _run(compiled.twice, call)
    return out


def sky(
    mean: Tensor, square: Tensor, luma: float, slope: float, deviation: float, least: float
) -> Tensor:
    """Compute sigmoid(slope · (mean − luma)) · exp(−(square − mean²)/deviation²) of [H, W].

    The variance is taken for 0 where it is less, and the exponent for ``least``, at least −87.
    """
    compiled, (height, width) = library(), _size(mean, 1)
    memory.check("plane", square, (height, width))
    out = memory.empty(height, width)
    call = SKY.pack(
        mean.data_ptr(), square.data_ptr(), out.data_ptr(), compiled.team, height, width,
        luma, slope, deviation, max(least, -87.0),
    )  # fmt: skip
    _run(compiled.sky, call)
    return out


def _run(function: Callable[[bytes, int], int], call: bytes) -> None:
    if function(call, torch.get_num_threads()):
        raise MemoryError("not enough memory for the target")


def _half(size: tuple[int, int]) -> tuple[int, int]:
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _size(plane: Tensor, least: int = 4) -> tuple[int, int]:
    """The size of a plane that the code can read: its borders are mirrored."""
    if plane.ndim != 2 or min(plane.shape) < least:
        raise ValueError(f"plane of shape {tuple(plane.shape)}, expected [H, W] from {least} up")
    height, width = plane.shape
    memory.check("plane", plane, (height, width))
    return height, width
