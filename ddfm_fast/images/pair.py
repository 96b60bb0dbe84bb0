"""Two sources read for fusion, and the fused luma given back as what came in."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .color import has_chroma, luma, with_luma
from .doubts import warn
from .kind import is_functional
from .planes import ImageSpec, crop, from_planes, to_planes

COLORS = (True, False, "ir", "vis")
"""``color=``: the visible image's chroma, or the infrared one's where only that has any; gray; or
that of the named source"""


class Pair(NamedTuple):
    """One image or batch of each source, on the device that fuses them."""

    ir: Tensor
    """luma [N, 1, H, W] float32 in [0, 1]"""
    vis: Tensor
    """likewise"""
    chroma: Tensor | None
    """RGB [N, 3, H, W] whose chroma the result takes, or None for gray"""
    color_from: list[str]
    """of each image: "ir" or "vis", the source that chroma is of"""
    functional: list[bool]
    """of each image: whether a source is a map in false color, such as PET"""
    spec: ImageSpec
    """of the source whose container, dtype, device and layout the result has"""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.ir.shape[-2:]
        return height, width

    def are_functional(self, images: str) -> list[bool]:
        """Tell which images count as maps by ``FuseConfig.images``: "auto" looks at them."""
        return self.functional if images == "auto" else [images == "functional"] * len(self.ir)

    def give_back(self, y: Tensor, *, dims: bool = False) -> Any:
        """Turn the fused luma into the container that came in.

        Args:
            y: [N, 1, H, W] in [0, 1]; H and W may have been cropped at the bottom and right.
            dims: As for ``with_luma``.
        """
        if self.chroma is not None:
            y = with_luma(y, self.chroma_of(y), dims=dims)
        return from_planes(y, self.spec)

    def chroma_of(self, y: Tensor) -> Tensor:
        """``chroma``, which is not None, cropped like y."""
        assert self.chroma is not None
        return crop(self.chroma, *y.shape[-2:])


def read_pair(
    ir: Any,
    vis: Any,
    *,
    device: torch.device,
    color: bool | str = True,
    value_range: tuple[float, float] | None = None,
    layout: str | None = None,
    least: int = 1,
    index: str = "",
) -> Pair:
    """Read an image, or a batch in one array, of each source.

    Args:
        ir: First source, in any container, dtype and layout of :func:`.planes.to_planes`.
        vis: Second source, of the same size.
        device: Where to put the planes.
        color: One of ``COLORS``.
        value_range: The values that mean black and white; None for the dtype's own.
        layout: Where the rule would read it wrongly.
        least: Smallest height and width that leave something of the picture.
        index: Appended to the arguments' names in errors, such as "[3]".

    Raises:
        ValueError: Sizes that differ or are too small, and what ``to_planes`` refuses.
        TypeError: What ``to_planes`` refuses.
    """
    a, a_spec = to_planes(ir, f"ir{index}", value_range=value_range, layout=layout)
    b, b_spec = to_planes(vis, f"vis{index}", value_range=value_range, layout=layout)
    if len(a) != len(b) or a.shape[-2:] != b.shape[-2:]:
        raise ValueError(
            f"ir{index} has {_size(a)} and vis{index} {_size(b)}; "
            "expected aligned images of equal size: register and resize them first"
        )
    if min(a.shape[-2:]) < least:
        raise ValueError(
            f"ir{index} has {_size(a)}, which cropping to multiples of {least} leaves "
            f"empty; expected at least {least}x{least}, or a preset that does not crop"
        )
    # where the images are: on a GPU each of these answers would wait for it
    for sentence in unlikely(a, b, index):
        warn(sentence)
    functional = [any(found) for found in zip(is_functional(a), is_functional(b), strict=True)]
    a, b = a.to(device), b.to(device)
    if not color:
        return Pair(luma(a), luma(b), None, ["vis"] * len(b), functional, b_spec)
    from_ir = color == "ir" or (color is True and b.shape[1] == 1 and a.shape[1] == 3)
    spec, channels = (a_spec, a.shape[1]) if from_ir else (b_spec, b.shape[1])
    sources = ["ir" if from_ir else "vis"] * len(b)
    if color is True and channels == 3:
        sources = ["vis" if found else "ir" for found in has_chroma(b).tolist()]
    chroma = _chroma_source(a, b, sources) if channels == 3 else None
    return Pair(luma(a), luma(b), chroma, sources, functional, spec)


def unlikely(ir: Tensor, vis: Tensor, index: str = "") -> list[str]:
    """List what is surely not meant in two sources [N, C, H, W] in [0, 1], a sentence each."""
    found: list[str] = []
    for n in range(len(ir)):
        place = index if len(ir) == 1 else f"{index}[{n}]"
        found += _of_pair(ir[n : n + 1], vis[n : n + 1], place)
    return found


def _of_pair(ir: Tensor, vis: Tensor, index: str) -> list[str]:
    if ir.device == vis.device and torch.equal(luma(ir), luma(vis)):
        return [f"ir{index} and vis{index} are the same picture; give two different sources"]
    flat = []
    for name, plane in (("ir", ir), ("vis", vis)):
        low, high = (float(x) for x in plane.aminmax())
        if low == high:
            flat.append((f"{name}{index}", low))
    if len(flat) == 2:
        return [f"ir{index} and vis{index} show nothing; check the files, or value_range"]
    return [
        f"{name} is {value:.3g} everywhere, so the result shows the other source alone; check the "
        "file, or value_range"
        for name, value in flat
    ]


def as_items(ir: Any, vis: Any) -> tuple[bool, list[tuple]]:
    """Tell whether a call has lists, and list its pairs of images; TypeError or ValueError."""
    many = isinstance(ir, (list, tuple))
    if many != isinstance(vis, (list, tuple)):
        raise TypeError(
            f"ir is a {type(ir).__name__} and vis a {type(vis).__name__}; "
            "expected two images, or two lists of images"
        )
    if many and len(ir) != len(vis):
        raise ValueError(f"ir has {len(ir)} images and vis {len(vis)}; expected as many of each")
    return many, list(zip(ir, vis, strict=True)) if many else [(ir, vis)]


def checked_color(color: Any) -> bool | str:
    """Return ``color`` if it is one of ``COLORS``, else raise ValueError."""
    if not any(color is c or (isinstance(color, str) and color == c) for c in COLORS):
        raise ValueError(f'color is {color!r}; expected True, False, "ir" or "vis"')
    return color


def _chroma_source(ir: Tensor, vis: Tensor, sources: list[str]) -> Tensor:
    """RGB [N, 3, H, W] to take the chroma from, chosen image by image."""
    ir, vis = (p.expand(-1, 3, -1, -1) for p in (ir, vis))
    if len(set(sources)) == 1:
        return ir if sources[0] == "ir" else vis
    return torch.stack([{"ir": ir, "vis": vis}[name][n] for n, name in enumerate(sources)])


def _size(planes: Tensor) -> str:
    n, _, height, width = planes.shape
    return f"{n} image{'s' * (n != 1)} of {height}x{width}"
