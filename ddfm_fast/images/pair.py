"""Two sources read for fusion, and the fused luma returned in the container of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .doubts import warn
from .facts import are_colored, unlikely
from .kind import is_functional
from .pixels import Given, Pixels
from .planes import ImageSpec, Raw, crop, read_raw, resolve_layout
from .ranges import by_source
from .stretch import Fused

COLORS = (True, False, "ir", "vis")
"""``color=``: the visible image's chroma, or the infrared one's where only that has any; gray; or
that of the named source"""


Align = Callable[[Raw, Raw, str], tuple[Raw, Raw, Tensor | None]]
"""maps both sources and the index of the arguments' names to: the first source moved onto the
second, the second, and the weight of the first, [N, 1, H, W] from 0 to 1; None for 1 everywhere"""


class Pair(NamedTuple):
    """One image or batch of each source, on the device that fuses them."""

    ir: Tensor
    """luma [N, 1, H, W] float32 in [0, 1]"""
    vis: Tensor
    """likewise"""
    chroma: Tensor | None
    """RGB [N, 3, H, W] whose chroma the result takes, as ``pixels`` read it, or None for gray"""
    color_from: list[str]
    """for each image: "ir" or "vis", the source of its chroma"""
    functional: list[bool]
    """for each image: whether a source is a map in false color, such as PET"""
    spec: ImageSpec
    """of the source whose container, dtype, device and layout the result has"""
    pixels: Pixels
    """what read the pair, and gives it back"""
    holes: tuple[Tensor | None, Tensor | None] = (None, None)
    """bool [N, 1, H, W], where a source lacks data and the result shows the other one; or the other
    one's share, from 0 to 1"""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.ir.shape[-2:]
        return height, width

    def are_functional(self, images: str) -> list[bool]:
        """Return which images count as maps by ``FuseConfig.images``: "auto" looks at them."""
        return self.functional if images == "auto" else [images == "functional"] * len(self.ir)

    def give_back(self, fused: Fused, *, dims: bool = False) -> Given:
        """Turn the fused luma into the container of the input, which may take a while.

        Args:
            fused: Its height and width may have been cropped at the bottom and right.
            dims: As for ``with_luma``.
        """
        for hole, other in zip(self.holes, (self.vis, self.ir), strict=True):
            if hole is not None:
                fused = fused.showing(other, hole)
        chroma = None if self.chroma is None else self.chroma_of(fused.luma)
        return self.pixels.give_back(fused, self.spec, chroma=chroma, dims=dims)

    def chroma_of(self, y: Tensor) -> Tensor:
        """``chroma``, which is not None, cropped like y."""
        assert self.chroma is not None
        return crop(self.chroma, *y.shape[-2:])


def read_pair(
    ir: Any,
    vis: Any,
    *,
    pixels: Pixels,
    color: bool | str = True,
    value_range: Any = None,
    layout: str | None = None,
    nodata: Any = None,
    least: int = 1,
    index: str = "",
    align: Align | None = None,
) -> Pair:
    """Read an image, or a batch in one array, of each source.

    Args:
        ir: First source, in any container, dtype and layout of :func:`.planes.to_planes`.
        vis: Second source, of the same size.
        pixels: Converts them, and moves them onto its device.
        color: One of ``COLORS``.
        value_range: The values that mean black and white, for both or by source; None for "auto",
            see :mod:`.ranges`.
        layout: The order of the axes, if it would be guessed wrongly.
        nodata: The value of missing pixels, for both or by source.
        least: Smallest height and width that cropping leaves usable.
        index: Appended to the arguments' names in errors, such as "[3]".
        align: Function that warps the first source onto the second, before sizes are compared.

    Raises:
        ValueError: Sizes differ or are too small, or as in ``to_planes``.
        TypeError: As in ``to_planes``.
    """
    ranges, nothing = by_source(value_range), by_source(nodata, "nodata")
    a, b = (
        read_raw(
            image, f"{name}{index}", layout=layout, nodata=nothing[name],
            value_range="auto" if ranges[name] is None else ranges[name],
        )
        for name, image in (("ir", ir), ("vis", vis))
    )  # fmt: skip
    a, b, counts = (a, b, None) if align is None else align(a, b, index)
    _check_sizes(a, b, least, index)
    seen = pixels.seen(a, b)
    for sentence in unlikely(*seen, index):
        warn(sentence)
    kinds = (is_functional(raw.values, raw.unit) for raw in seen)
    functional = [any(either) for either in zip(*kinds, strict=True)]
    spec, sources, colored = _color_from(*seen, color)
    if color is True and colored:
        _look_swapped(seen[0], sources, functional, index)
    in_ir, in_vis = pixels.read(a, b, set(sources) if colored else set())
    chroma = _chroma(sources, {"ir": in_ir.rgb, "vis": in_vis.rgb}) if colored else None
    holes = a.holes, b.holes
    if counts is not None:
        shown = torch.lerp(in_vis.luma, in_ir.luma, counts.to(in_ir.luma.device))
        in_ir = in_ir._replace(luma=shown)
        none = 1 - counts
        holes = none if a.holes is None else torch.maximum(none, a.holes.cpu().float()), b.holes
    return Pair(in_ir.luma, in_vis.luma, chroma, sources, functional, spec, pixels, holes)


def _check_sizes(ir: Raw, vis: Raw, least: int, index: str) -> None:
    a, b = ir.values, vis.values
    if len(a) != len(b) or a.shape[-2:] != b.shape[-2:]:
        raise ValueError(
            f"ir{index} is {_size(a)} and vis{index} is {_size(b)} (height x width); expected "
            "images of equal size: pass --resize vis (for files) if both show the same view, else "
            'align="homography" (--align homography)'
        )
    if min(a.shape[-2:]) < least:
        raise ValueError(
            f"ir{index} is {_size(a)}, which cropping to multiples of {least} leaves "
            f"empty; expected at least {least}x{least}, or a preset that does not crop"
        )


def _color_from(ir: Raw, vis: Raw, color: bool | str) -> tuple[ImageSpec, list[str], bool]:
    """Return the result's spec, each image's source of color, and whether it has color."""
    from_ir, colored = _color_of(ir.values.shape[1], vis.values.shape[1], color)
    spec, name = (ir.spec, "ir") if from_ir else (vis.spec, "vis")
    if color is True and colored:
        return spec, ["vis" if found else "ir" for found in are_colored(vis)], True
    return spec, [name] * len(vis.values), colored


def _look_swapped(ir: Raw, sources: list[str], functional: list[bool], index: str) -> None:
    """Warn of a first source in color beside a gray second one, unless it is a functional map."""
    pairs = zip(are_colored(ir) if "ir" in sources else (), sources, functional, strict=False)
    if any(found and source == "ir" and not mapped for found, source, mapped in pairs):
        warn(
            f"ir{index} is in color and vis{index} is gray, as if the two were exchanged; pass "
            "the infrared source first, or color='ir' (--color-from ir) if this is intended",
            "exchanged",
        )


def _color_of(ir: int, vis: int, color: bool | str) -> tuple[bool, bool]:
    """Return whether the result is like the infrared source, and whether it has color."""
    from_ir = color == "ir" or (color is True and vis == 1 and ir == 3)
    return from_ir, bool(color) and (ir if from_ir else vis) == 3


def result_like(
    ir: Tensor, vis: Tensor, *, color: bool | str, layout: str | None, multiple: int
) -> Tensor:
    """Make an empty result for two sources, of which only shape, dtype and device are read.

    Args:
        ir: As for :func:`read_pair`, as are ``vis``, ``color`` and ``layout``.
        vis: See ``ir``.
        color: See ``ir``.
        layout: See ``ir``.
        multiple: Number to whose multiples the method crops height and width.

    Raises:
        ValueError: A shape or layout does not fit.
    """
    channels = []
    for name, x in (("ir", ir), ("vis", vis)):
        axes = resolve_layout(tuple(x.shape), "torch", layout, name)
        channels.append(x.shape[axes.index("C")] if "C" in axes else 1)
    from_ir, colored = _color_of(channels[0], channels[1], color)
    like = ir if from_ir else vis
    axes = resolve_layout(tuple(like.shape), "torch", layout, "ir" if from_ir else "vis")
    sizes = dict(zip(axes, like.shape, strict=True))
    sizes.update({axis: sizes[axis] - sizes[axis] % multiple for axis in "HW"})
    if "C" in sizes:
        sizes["C"] = 3 if colored else 1
    return like.new_empty(tuple(sizes.values()))


def _chroma(sources: list[str], rgb: dict[str, Tensor | None]) -> Tensor:
    """Return RGB [N, 3, H, W] from which to take the chroma, chosen image by image."""
    used = [plane for name in sources if (plane := rgb[name]) is not None]
    if len(set(sources)) == 1:
        return used[0]
    return torch.stack([plane[n] for n, plane in enumerate(used)])


def as_items(ir: Any, vis: Any) -> tuple[bool, list[tuple]]:
    """Return whether a call has lists, and list its pairs of images; TypeError or ValueError."""
    many = isinstance(ir, (list, tuple))
    if many != isinstance(vis, (list, tuple)):
        raise TypeError(
            f"ir is a {type(ir).__name__} and vis a {type(vis).__name__}; "
            "expected two images, or two lists of images"
        )
    if many and len(ir) != len(vis):
        raise ValueError(
            f"ir has {len(ir)} and vis {len(vis)} images; expected equally many of each"
        )
    return many, list(zip(ir, vis, strict=True)) if many else [(ir, vis)]


def checked_color(color: Any) -> bool | str:
    """Return ``color`` if it is one of ``COLORS``, else raise ValueError."""
    if not any(color is c or (isinstance(color, str) and color == c) for c in COLORS):
        raise ValueError(f'color is {color!r}; expected True, False, "ir" or "vis"')
    return color


def _size(planes: Tensor) -> str:
    n, _, height, width = planes.shape
    return f"{height}x{width}" if n == 1 else f"{n} images of {height}x{width}"
