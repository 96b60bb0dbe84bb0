"""``choose.cpp``: a faster version of ``ddfm_fast.target.choose``, float32 on a CPU.

One call runs all stages, each over blocks of rows on all threads, and its result does not depend on
the number of threads. Between stages it keeps the equivalent of 3.2 planes; :func:`planes_of` shows
them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

from torch import Tensor

from . import build, memory, prebuilt

SOURCE = prebuilt.HERE / "choose.cpp"
CHOOSE = struct.Struct("58P3q13d")
LEVELS, MOMENTS = 6, 5
BY_LEVEL = {"ir": 1, "vis": 1, "conflict": 1, "pick": 1, "sky": 1, "weight": 2, "result": 1}
"""planes kept at many levels, and the finest level of each"""
SINGLE = {
    "square": 1, **{f"moments{k}": 2 for k in range(MOMENTS)}, "parts0": 2, "parts1": 2,
    "wide0": 3, "wide1": 3, "cold": 3, "guide": 2, "raw": 2, "slope": 2, "offset": 2,
}  # fmt: skip
"""planes kept at one level, and that level"""
LEAST = 16
"""least height and width"""


class Terms(Protocol):
    """The numbers of ``ddfm_fast.target.choose.Terms``, which says what they do."""

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
    @property
    def sky_base(self) -> float: ...
    @property
    def conflict(self) -> float: ...
    @property
    def salient(self) -> float: ...
    @property
    def bright(self) -> float: ...
    @property
    def slope(self) -> float: ...
    @property
    def contrast(self) -> float: ...
    @property
    def most_contrast(self) -> float: ...


class Library(build.Functions):
    """The compiled function."""

    STRUCTS = {"choose": CHOOSE}


def status() -> str | None:
    """Return why this cannot be used here, or None if it can; compiles on first use."""
    return load()[1]


@lru_cache(maxsize=1)
def load() -> tuple[Library | None, str | None]:
    """Find the function in the library that ``build`` loads once, or None and the reason."""
    return load_again()


def load_again() -> tuple[Library | None, str | None]:
    """Find it again, ignoring what was found before."""
    return build.functions(Library)


def choose(
    ir: Tensor,
    vis: Tensor,
    terms: Terms,
    depth: int,
    margin: float,
    work: Tensor | None = None,
) -> Tensor:
    """Fuse two lumas in closed form.

    Args:
        ir: The infrared source [H, W] in [0, 1], both at least ``LEAST``, float32 without gaps.
        vis: The visible one, likewise.
        terms: The numbers of the data terms.
        depth: Halvings of the pyramids, 2 to 5, that leave at least 4 pixels a side.
        margin: The result is at most this times the brighter source.
        work: Memory for :func:`work_floats` numbers; None allocates it.

    Returns:
        The result [H, W].

    Raises:
        RuntimeError: :func:`status` has a reason.
        ValueError: Shape, dtype, device, strides or alignment are wrong.
        MemoryError: There is no memory for scratch.
    """
    compiled, reason = load()
    if compiled is None:
        raise RuntimeError(f"the CPU kernels cannot be used: {reason}")
    if ir.ndim != 2 or min(ir.shape) < LEAST:
        raise ValueError(f"ir of shape {tuple(ir.shape)}, expected [H, W] from {LEAST} up")
    height, width = ir.shape
    memory.check("ir", ir, (height, width))
    memory.check("vis", vis, (height, width))
    if not 2 <= depth < LEVELS or min(ir.shape) <= 3 << depth:
        raise ValueError(f"depth: {depth} of {height}x{width} pixels, expected 4 a side at least")
    out = memory.empty(height, width)
    work = memory.empty(work_floats(height, width)) if work is None else work
    memory.check("work", work, (work_floats(height, width),))
    places = _places(height, width)
    at = {name: work.data_ptr() + 4 * place for name, (place, _, _) in places.items()}
    at |= {"ir0": ir.data_ptr(), "vis0": vis.data_ptr(), "result0": out.data_ptr()}
    levels = (at.get(f"{name}{k}", 0) for name in BY_LEVEL for k in range(LEVELS))
    compiled.run(
        "choose", *levels, *(at[name] for name in SINGLE), compiled.team, height, width, depth,
        terms.share, terms.gain, terms.coring, terms.sky_coring, terms.sky_share, terms.sky_base,
        terms.conflict, terms.salient, terms.bright, terms.slope, terms.contrast,
        terms.most_contrast, margin,
    )  # fmt: skip
    return out


def work_floats(height: int, width: int) -> int:
    """Count the numbers that :func:`choose` keeps between its stages."""
    return sum(h * w for _, h, w in _places(height, width).values())


def planes_of(work: Tensor, height: int, width: int) -> Mapping[str, Tensor]:
    """Name the planes in ``work``; terms and depth determine which of them were written."""
    places = _places(height, width).items()
    return {name: work[at : at + h * w].view(h, w) for name, (at, h, w) in places}


@lru_cache(maxsize=16)
def _places(height: int, width: int) -> dict[str, tuple[int, int, int]]:
    """Return where each plane begins, and its size."""
    levels = {f"{n}{k}": k for n, first in BY_LEVEL.items() for k in range(first, LEVELS)}
    places, at = {}, 0
    for name, level in (levels | SINGLE).items():
        h, w = (math.ceil(size / 2**level) for size in (height, width))
        places[name] = at, h, w
        at += h * w
    return places
