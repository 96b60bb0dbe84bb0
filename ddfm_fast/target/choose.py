"""The fused luma in closed form: the target of the variant ``saliency``.

Per level of the sources' Laplacian pyramids, with E = G₁ ∗ L² the local energy of a band:

    share   s = ½ + share · (E_i²/(E_i² + E_v²) − ½): the stronger source, but not it alone
    coring  L ← L · E/(E + τ²): texture of a sensor's amplitude is no detail; the infrared's
            τ is larger in sky
    sky     s ← s · (1 − sky_share · sky): infrared texture adds nothing to a flat bright sky
    band    gain · (s · L_i + (1 − s) · L_v)

and at the coarsest level w · i + (1 − w) · v by the weight of salience and brightness, less
``sky_base`` of it in sky, its contrast about its mean brought up to the sources' own, which
averaging of opposites takes away. Where the sources contradict each other (C), s and w turn to the
one that varies more there, by at most ``conflict`` of the way: a copy of one source is no fusion.
Where the visible is bright and the infrared cold, that pick turns to the visible: a day's sky is no
hole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .pyramid import bands, depth, down, down_times, smooth, up
from .terms import CENTER, base_weight, conflict, product, sky

LEVELS = 5
"""bands above the coarsest level"""
BLACK_MARGIN = 6.0
"""times the brighter source's gray that a fused pixel may have: black in both stays black"""
_TINY = 1e-12


@dataclass(frozen=True)
class Terms:
    """The numbers of the data terms; what they do is in the module's description."""

    share: float
    gain: float
    coring: float
    """τ, gray levels of 255"""
    sky_coring: float
    """added to τ in sky, gray levels of 255"""
    sky_share: float
    sky_base: float
    """share of the infrared's weight in the base that it loses in sky"""
    conflict: float
    salient: float
    bright: float
    slope: float
    contrast: float
    """of the base: times the sources' root mean square contrast that it is brought up to"""
    most_contrast: float
    """most that the base's contrast is multiplied by"""


PHOTOGRAPHIC = Terms(
    share=0.55,
    gain=1.33,
    coring=0.3,
    sky_coring=1.0,
    sky_share=0.5,
    sky_base=0.4,
    conflict=0.5,
    salient=0.4,
    bright=0.6,
    slope=8.0,
    contrast=1.5,
    most_contrast=1.6,
)
"""for scenes and anatomy"""

FUNCTIONAL = Terms(
    share=0.1,
    gain=1.0,
    coring=0.0,
    sky_coring=0.0,
    sky_share=0.0,
    sky_base=0.0,
    conflict=0.0,
    salient=0.0,
    bright=0.0,
    slope=8.0,
    contrast=0.0,
    most_contrast=1.0,
)
"""for PET, SPECT and other maps in false color: close to the mean, whose gray means something"""


def choose(
    ir: Tensor, vis: Tensor, functional: Sequence[bool] | None = None, *, triton: bool = False
) -> Tensor:
    """Fuse lumas [N, 1, H, W] float32 in [0, 1] in closed form; the same shape and range.

    Images are taken one at a time, so a batch gives each the bytes that it gets alone. Where
    gradients are on and a source requires them, autograd can differentiate the result, and every
    operation is PyTorch's own.

    Args:
        ir: The infrared sources, H and W of at least 16.
        vis: The visible ones.
        functional: Of each pair, whether a source is a map whose gray levels mean something, such
            as PET; none by default.
        triton: Whether the fused kernels may run, on a CUDA device.
    """
    functional = functional or [False] * len(ir)
    differentiable = torch.is_grad_enabled() and (ir.requires_grad or vis.requires_grad)
    if triton and ir.device.type == "cuda" and not differentiable:
        from ..kernels import choose_planes

        return choose_planes(ir, vis, functional)
    with torch.set_grad_enabled(differentiable):
        planes = [
            _choose(i, v, FUNCTIONAL if is_map else PHOTOGRAPHIC)
            for i, v, is_map in zip(ir[:, 0], vis[:, 0], functional, strict=True)
        ]
    together = planes[0][None] if len(planes) == 1 else torch.stack(planes)  # saves a copy
    return together[:, None]


def _choose(i: Tensor, v: Tensor, terms: Terms) -> Tensor:
    levels = depth(i.shape[-2], i.shape[-1], LEVELS)
    i, v = i.contiguous(), v.contiguous()
    if (fast := _compiled(i, v)) is not None:
        return fast.choose(i, v, terms, levels, BLACK_MARGIN)
    g_i, g_v = down_times(i, levels), down_times(v, levels)
    maps = _maps(g_i, g_v, v, terms)
    out = _base(g_i, g_v, maps, terms)
    for k in reversed(range(levels)):
        sources, coarse = (g_i[k], g_v[k]), (g_i[k + 1], g_v[k + 1])
        margin = 0.0 if k else BLACK_MARGIN
        out = _fuse_level(sources, coarse, out, maps.at(k), terms, margin)
    return out


def _compiled(x: Tensor, other: Tensor) -> ModuleType | None:
    """Find ``kernels.cpu.closed``, which does all of it, if it can take such planes."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return None
    if torch.is_grad_enabled() and (x.requires_grad or other.requires_grad):
        return None
    from ..kernels.cpu import closed

    return closed if closed.status() is None else None


def _fuse_level(
    sources: tuple[Tensor, Tensor],
    coarse: tuple[Tensor, Tensor],
    out: Tensor,
    maps: _Level,
    terms: Terms,
    margin: float,
) -> Tensor:
    """Fuse a level [H, W] of the result onto the coarser one; with a margin, clamp it."""
    a, b = (bands([plane, below])[0] for plane, below in zip(sources, coarse, strict=True))
    out = up(out, *a.shape).add_(_band(a, b, maps, terms))
    if not margin:
        return out
    highest = torch.maximum(*sources).mul_(margin).clamp_(max=1)
    return torch.minimum(out, highest).clamp_(min=0)


class _Level(NamedTuple):
    """The maps of a level; None if a term is off."""

    conflict: Tensor | None
    pick: Tensor | None
    sky: Tensor | None


class _Maps:
    """Maps of the pyramid's levels, each made from the level where it was computed."""

    def __init__(self, sizes: list[tuple[int, int]], *known: tuple[int, Tensor] | None):
        self.planes = [None if e is None else _carried(e[1], e[0], sizes) for e in known]

    def at(self, level: int) -> _Level:
        """Return those of a level."""
        return _Level(*(None if p is None else p[level] for p in self.planes))


def _carried(plane: Tensor, level: int, sizes: list[tuple[int, int]]) -> dict[int, Tensor]:
    """Return a level's plane at every level: doubled for finer ones, halved for coarser ones."""
    planes = {level: plane}
    for k in reversed(range(level)):
        planes[k] = up(planes[k + 1], *_at_least(sizes, k))
    for k in range(level + 1, len(sizes)):
        planes[k] = down(planes[k - 1])
    return planes


def _at_least(sizes: list[tuple[int, int]], k: int) -> tuple[int, int]:
    """Return the size of a level, even of one that a small picture's pyramid lacks."""
    if k < len(sizes):
        return sizes[k]
    height, width = _at_least(sizes, k - 1)
    return (height + 1) // 2, (width + 1) // 2


def _maps(g_i: list[Tensor], g_v: list[Tensor], v: Tensor, terms: Terms) -> _Maps:
    sizes = [(plane.shape[-2], plane.shape[-1]) for plane in g_i]
    disputed = pick = bright = None
    if terms.conflict and len(g_i) > 1:
        c, p = conflict(g_i[1], g_v[1])
        disputed, pick = (2, c * terms.conflict), (3, p)
    if (terms.sky_share or terms.sky_coring or terms.sky_base) and len(g_v) > 1:
        centered = v - CENTER
        bright = (1, sky(g_v[1] - CENTER, down(product(centered, centered))))
    return _Maps(sizes, disputed, pick, bright)


def _band(a: Tensor, b: Tensor, maps: _Level, terms: Terms) -> Tensor:
    """Return the fused band of two bands [H, W]."""
    energy_a, energy_b = smooth(a * a), smooth(b * b)
    s = _share(energy_a, energy_b, terms.share)
    core_a: Tensor | float = (terms.coring / 255) ** 2 + _TINY
    core_b = core_a
    if maps.sky is not None:
        s.mul_(1 - terms.sky_share * maps.sky)
        core_a = ((terms.coring + terms.sky_coring * maps.sky) / 255).square_() + _TINY
    if maps.conflict is not None and maps.pick is not None:
        s.lerp_(maps.pick, maps.conflict)
    a = (a * energy_a).div_(energy_a + core_a)
    b = (b * energy_b).div_(energy_b + core_b)
    return ((a - b) * s).add_(b).mul_(terms.gain)


def _share(energy_a: Tensor, energy_b: Tensor, share: float) -> Tensor:
    """Compute ½ + share · (E_a²/(E_a² + E_b²) − ½)."""
    square_a, square_b = energy_a * energy_a, energy_b * energy_b
    square_a.add_(_TINY)
    return square_a.div_(square_b.add_(square_a).add_(_TINY)).sub_(0.5).mul_(share).add_(0.5)


def _base(g_i: list[Tensor], g_v: list[Tensor], maps: _Maps, terms: Terms) -> Tensor:
    """Return the coarsest level of the result."""
    last = len(g_i) - 1
    a, b = g_i[last], g_v[last]
    w = torch.full_like(a, 0.5)
    if terms.salient or terms.bright:
        level = min(2, last)
        w = base_weight(g_i[level], g_v[level], terms.salient, terms.bright, terms.slope)
        for _ in range(last - level):
            w = down(w)
    disputed, pick, bright = maps.at(last)
    if disputed is not None and pick is not None:
        w.lerp_(pick, disputed)
    if bright is not None:
        w.mul_(1 - terms.sky_base * bright)
    out = torch.lerp(b, a, w)
    if not terms.contrast:
        return out
    mean = out.mean()
    own = out.std(correction=0).clamp(min=1e-4)
    wanted = ((a.var(correction=0) + b.var(correction=0)) / 2).sqrt()
    factor = (wanted * terms.contrast / own).clamp(1, terms.most_contrast)
    return (out - mean) * factor + mean
