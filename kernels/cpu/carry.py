"""``carry.cpp``: a faster version of ``ddfm_fast.video.trust.carry``, float32 on a CPU."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from . import build, memory, prebuilt

SOURCE = prebuilt.HERE / "carry.cpp"
CARRY = struct.Struct("8P2q2d")


class Library(build.Functions):
    """The compiled function."""

    STRUCTS = {"carry": CARRY}


def status() -> str | None:
    """Return why this cannot be used here, or None if it can; compiles on first use."""
    return load()[1]


@lru_cache(maxsize=1)
def load() -> tuple[Library | None, str | None]:
    """Find the function in the library that ``build`` loads once, or None and the reason."""
    return build.functions(Library)


def carry(
    now: Sequence[Tensor],
    kept: Sequence[Tensor],
    flow: Tensor | None,
    trust: float,
    margin: float,
) -> tuple[Tensor, Tensor]:
    """Mix two sources with those of the previous frame; the same for any number of threads.

    Args:
        now: Planes [H, W] in [0, 1], both at least 2, float32 without gaps, here and below.
        kept: The planes of the previous frame.
        flow: [H, W, 2], (dx, dy) in pixels, or None.
        trust: Gray levels of change at which trust falls to 1/e.
        margin: Gray levels by which moving must be better than standing still.

    Returns:
        Two planes.

    Raises:
        RuntimeError: :func:`status` has a reason.
        ValueError: Shape, dtype, device, strides or alignment are wrong.
        MemoryError: There is no memory for scratch.
    """
    compiled, reason = load()
    if compiled is None:
        raise RuntimeError(f"the CPU kernels cannot be used: {reason}")
    if now[0].ndim != 2 or min(now[0].shape) < 2:
        raise ValueError(f"now of shape {tuple(now[0].shape)}, expected [H, W] from 2 up")
    height, width = now[0].shape
    for name, planes in (("now", now), ("kept", kept)):
        for plane in planes:
            memory.check(name, plane, (height, width))
    if flow is not None:
        memory.check("flow", flow, (height, width, 2))
    out = memory.empty(2, height, width)
    first, second = out
    compiled.run(
        "carry", *(plane.data_ptr() for plane in (*now, *kept)),
        0 if flow is None else flow.data_ptr(), first.data_ptr(), second.data_ptr(),
        compiled.team, height, width, trust, margin,
    )  # fmt: skip
    return first, second
