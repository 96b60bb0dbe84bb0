"""``pixels.cpp``: a faster version of ``ddfm_fast.images.pixels.Pixels``, for integers on a CPU.

    read_luma   integers of an image to its luma
    limits      the limits by which a fused luma is stretched
    give_back   a fused luma, stretched and colored, to integers

Each is one pass over memory, and its result does not depend on the number of threads.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import torch
from torch import Tensor

from ddfm_fast.images.planes import ImageSpec, check_fits
from ddfm_fast.images.stretch import Fused, limits_between, outside

from . import build, memory, prebuilt

SOURCE = prebuilt.HERE / "pixels.cpp"
# the structs of pixels.cpp
READ, ORDER, GIVE = struct.Struct("3P7q"), struct.Struct("7P3q"), struct.Struct("4P13q2d")
INTEGERS = (torch.uint8, torch.uint16)
BLOCK = 1 << 14
"""values per task, which keeps the least and greatest of them; or 64 times as many as it keeps"""


class Library(build.Functions):
    """The compiled functions."""

    STRUCTS = {"read": READ, "order": ORDER, "give": GIVE}


def status() -> str | None:
    """Return why this cannot be used here, or None if it can; compiles on first use."""
    return load()[1]


@lru_cache(maxsize=1)
def load() -> tuple[Library | None, str | None]:
    """Find the functions in the library that ``build`` loads once, or None and the reason."""
    return build.functions(Library)


def library() -> Library:
    """Return the compiled functions; RuntimeError with the reason if :func:`status` has one."""
    found, reason = load()
    if found is None:
        raise RuntimeError(f"the CPU kernels cannot be used: {reason}")
    return found


def read_luma(values: Tensor) -> Tensor:
    """Compute the luma of integers, as ``images.color.luma`` of the planes in [0, 1] does.

    Args:
        values: [N, C, H, W], uint8 or uint16 of any strides, C 1 or 3.

    Returns:
        [N, 1, H, W] float32.

    Raises:
        RuntimeError: :func:`status` has a reason.
        ValueError: Shape, dtype or device are wrong.
        MemoryError: There is no memory for scratch.
    """
    compiled = library()
    n, channels, height, width = _shape("values", values, INTEGERS)
    out = memory.empty(n, 1, height, width)
    if channels == 1:
        values = values if values.stride(3) == 1 else values.contiguous()
    else:
        values = _readable(values)
    for image, luma in zip(values, out, strict=True):
        compiled.run(
            "read", _address("values", image), luma.data_ptr(), compiled.team,
            height, width, channels, values.element_size(),
            image.stride(1), image.stride(2), image.stride(0),
        )  # fmt: skip
    return out


def limits(y: Tensor, ir: Tensor, vis: Tensor, stretch: str) -> Tensor:
    """Find the limits by which a luma is stretched, as ``images.stretch.stretch_limits`` does.

    Args:
        y: Fused luma [N, 1, H, W], float32 without gaps, like ``ir`` and ``vis``.
        ir: Luma of a source.
        vis: Luma of the other.
        stretch: "sources", "percentile" or "minmax".

    Returns:
        [2, N, 1, 1, 1].

    Raises:
        RuntimeError: :func:`status` has a reason.
        ValueError: Shape, dtype, device, strides or alignment are wrong.
        MemoryError: There is no memory for scratch.
    """
    compiled, shape = library(), (len(y), 1, *y.shape[-2:])
    for name, plane in (("y", y), ("ir", ir), ("vis", vis)):
        memory.check(name, plane, shape)
    count = y[:1].numel()
    rank = 0 if stretch == "minmax" else outside(count)
    block = max(BLOCK, 64 * (rank + 1))
    blocks = -(-count // block)
    kept, ends = memory.empty(blocks, 2, rank + 1), memory.empty(blocks, 2)
    found = memory.empty(len(y), 4)
    for planes in zip(y, ir, vis, found, strict=True):
        values, first, second, out = (plane.data_ptr() for plane in planes)
        compiled.run(
            "order", values, first, second, kept.data_ptr(), ends.data_ptr(), out, compiled.team,
            count, rank, block,
        )  # fmt: skip
    low, high, least, most = found.T.reshape(4, -1, 1, 1, 1)
    if stretch != "sources":
        return torch.stack((low, high))
    return limits_between(low, high, least, most)


def give_back(
    fused: Fused, spec: ImageSpec, *, chroma: Tensor | None = None, dims: bool = False
) -> Tensor:
    """Compute the integers of a result, as ``images.pixels.Pixels.give_back`` does.

    Args:
        fused: Lumas [N, 1, H, W], float32.
        spec: The container's: uint8 or uint16, without a value range.
        chroma: RGB [N, 3, H, W] whose chroma the result takes: uint8, uint16, or float32 in [0, 1];
            None for gray.
        dims: As for ``images.color.with_luma``.

    Returns:
        The values in the container's layout.

    Raises:
        RuntimeError: :func:`status` has a reason.
        ValueError: Shape, dtype, device or layout are wrong.
        MemoryError: There is no memory for scratch.
    """
    compiled = library()
    y = fused.luma.contiguous()
    n, channels, height, width = _shape("luma", y, (memory.FLOAT,))
    if channels != 1 or spec.dtype not in INTEGERS or spec.value_range is not None:
        raise ValueError(f"luma of {channels} channels for {spec}; expected one, and integers")
    check_fits(n, 1 if chroma is None else 3, spec)
    if chroma is not None:
        given = _shape("chroma", chroma, (*INTEGERS, memory.FLOAT))
        if given != (n, 3, height, width):
            raise ValueError(f"chroma of shape {given}; expected {(n, 3, height, width)}")
        chroma = _readable(chroma)
    ends = [(0.0, 1.0)] * n if fused.limits is None else fused.limits.view(2, n).T.tolist()
    planes, out = _result(n, 1 if chroma is None else 3, height, width, spec)
    for k, (low, high) in enumerate(ends):
        colors: tuple[int, ...] = (0,) * 5
        if chroma is not None:
            steps = (chroma.stride(axis) for axis in (2, 3, 1))
            colors = (_address("chroma", chroma[k]), chroma.element_size(), *steps)
        compiled.run(
            "give", _address("luma", y[k]), colors[0], planes[k].data_ptr(), compiled.team,
            height, width, fused.limits is not None, dims, *colors[1:],
            planes.element_size(), *(planes.stride(axis) for axis in (2, 3, 1)), planes.shape[1],
            low, high,
        )  # fmt: skip
    return out


def _result(
    n: int, channels: int, height: int, width: int, spec: ImageSpec
) -> tuple[Tensor, Tensor]:
    """Return a result, not yet written, both as [N, C, H, W] and in its layout."""
    if spec.layout.endswith("HWC"):
        out = torch.empty((n, height, width, channels), dtype=spec.dtype, device=memory.CPU)
        planes = memory.in_huge_pages(out).permute(0, 3, 1, 2)
    else:
        planes = out = torch.empty((n, channels, height, width), dtype=spec.dtype,
                                   device=memory.CPU)  # fmt: skip
        memory.in_huge_pages(out)
        out = planes if "C" in spec.layout else planes[:, 0]
    return planes, out if "N" in spec.layout else out[0]


def _shape(name: str, x: Tensor, dtypes: tuple[torch.dtype, ...]) -> tuple[int, int, int, int]:
    """Return the shape of images that the code can read."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or x.dtype not in dtypes or not x.is_cpu:
        kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise memory.refusal(name, x, ("N", "1 or 3", "H", "W"), f"of {kinds}")
    n, channels, height, width = x.shape
    return n, channels, height, width


def _readable(rgb: Tensor) -> Tensor:
    """Return it with columns one value apart or, if channels are interleaved, three."""
    interleaved = rgb.stride(3) == 3 and rgb.stride(1) == 1
    return rgb if interleaved or rgb.stride(3) == 1 else rgb.contiguous()


def _address(name: str, x: Tensor) -> int:
    """Find where values begin; ValueError if they cannot be read there."""
    found = x.data_ptr()
    if found % x.element_size() or not found or x.is_neg():
        raise ValueError(
            f"{name}: begins at address {found:#x}, negative bit {x.is_neg()}; expected memory "
            f"that begins at a multiple of {x.element_size()} bytes, without that bit: .clone() it"
        )
    return found
