"""A prior evaluated tile by tile, for pictures that it cannot take whole.

The tiles of a picture all have one size and are spaced evenly; neighbors overlap by at least a
quarter of their side. Along an axis, tile k takes over from those before it by a smooth ramp r_k,
from 0 to 1 inside their overlap, so its weight is w_k = r_k · Π_{j>k} (1 − r_j). The weights sum to
one, and no tile counts within a quarter of the overlap from a border that is not the picture's own,
where it lacks what lies beyond.

Networks whose norms or attention see the whole picture answer a little differently for a tile;
bench/results/tiles-2026-11-29.md has what that costs.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..images.integers import as_count
from ..runtime.memory import SAMPLER_PLANES, free_bytes, free_host_bytes
from .conditioning import Conditioning
from .prior import Prior
from .reuse import Kept, passed

LEAST, MOST = 64, 65536
"""sides of tiles that may be requested"""
SIDES = (1024, 512, 256)
"""sides that "auto" chooses from: the largest that fits"""
SHARE = 0.5
"""share of the free memory that "auto" lets one picture take"""
SMALL = 512 * 512
"""pixels of a picture that "auto" never tiles"""
PLENTY = 2**14
"""bytes per pixel that are enough for any network: if so much is free, nothing is counted"""


class Span(NamedTuple):
    """A tile along one axis."""

    start: int
    weights: Tensor
    """float32 [side] on the prior's device"""


def tiled(prior: Prior, tile: int | str, keeps: bool = False) -> Prior:
    """Return the prior as ``tile`` says: "auto", "off" or the side of tiles.

    A prior that is already tiled stays as it is. ``keeps``: whether the loop reuses deep layers,
    whose memory "auto" then counts.

    Raises:
        ValueError: ``tile`` has another value.
    """
    if isinstance(tile, str) and tile.isdecimal():  # from the command line
        tile = int(tile)
    side = as_count(tile, LEAST, MOST)
    if side is None and not (isinstance(tile, str) and tile in ("auto", "off")):
        raise ValueError(
            f'tile is {tile!r}; expected "auto", "off" or the side of the tiles, {LEAST} to {MOST} '
            "pixels, such as 512"
        )
    if tile == "off" or isinstance(prior, TiledPrior):
        return prior
    return TiledPrior(prior, tile if side is None else side, keeps)


class TiledPrior(Prior):
    """``inner`` on tiles of side ``tile``, rounded up to what it takes; smaller pictures whole.

    With "auto", a picture is tiled if ``inner`` would need more than ``SHARE`` of the memory that
    is free when its size is first seen; that choice then stays for every tiling of this prior. A
    callable, whose memory use is unknown, is then never tiled. With ``keeps``, the deep layers that
    a loop keeps count, too. Two with the same prior, tile and ``keeps`` are equal.
    """

    def __init__(self, inner: Prior, tile: int | str, keeps: bool = False):
        super().__init__(**Prior.keywords(inner), device=inner.device, dtype=inner.dtype)
        self.inner, self.tile, self.keeps = inner, tile, keeps
        self.tf32, self.compiled, self.channels = inner.tf32, inner.compiled, inner.channels
        self.reproducible, self.foreign = inner.reproducible, inner.foreign
        self.reuses = inner.reuses

    @functools.cached_property
    def fingerprint(self) -> str:
        """That of ``inner``."""
        return self.inner.fingerprint

    @functools.cached_property
    def noise_levels(self) -> Tensor:
        """Those of ``inner``."""
        return self.inner.noise_levels

    @functools.cached_property
    def has_variance(self) -> bool:
        """Whether ``inner`` predicts the variance half."""
        return self.inner.has_variance

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TiledPrior):
            return False
        return self.inner is other.inner and self._how == other._how

    def __hash__(self) -> int:
        return hash((self.inner, *self._how))

    @property
    def _how(self) -> tuple[int | str, bool]:
        return self.tile, self.keeps

    def activation_bytes(self, n: int, height: int, width: int) -> int | None:
        """See :meth:`Prior.activation_bytes`; counts a tile, and the sum to which it is added."""
        side = self.tile_at(height, width)
        tile = (side, side) if side else (height, width)
        need = self.inner.activation_bytes(n, *map(min, tile, (height, width)))
        channels = self.channels * (2 if side else 0)
        return None if need is None else need + 4 * n * channels * height * width

    def kept_bytes(self, n: int, height: int, width: int) -> int:
        """See :meth:`Prior.kept_bytes`; counts all tiles, which overlap."""
        return self._kept_in(self.tile_at(height, width), n, height, width)

    def _kept_in(self, side: int, n: int, height: int, width: int) -> int:
        if not side:
            return self.inner.kept_bytes(n, height, width)
        overlap = overlap_of(side, self.multiple)
        rows, columns = (len(starts_of(length, side, overlap, self.multiple))
                         for length in (height, width))  # fmt: skip
        tile = min(side, height), min(side, width)
        return rows * columns * self.inner.kept_bytes(n, *tile)

    def to(self, device: str | torch.device) -> TiledPrior:
        """See :meth:`Prior.to`."""
        inner = self.inner.to(device)
        return self if inner is self.inner else TiledPrior(inner, *self._how)

    def conditioning(self, timesteps: Tensor) -> Conditioning:
        return self.inner.conditioning(timesteps)

    def tile_at(self, height: int, width: int) -> int:
        """Return the side of the tiles for a picture of that size, 0 if it is evaluated whole."""
        size = tuple(-(-n // self.multiple) * self.multiple for n in (height, width))
        chosen = self.inner.tilings.setdefault("sides", {})
        key = (*self._how, *size)
        if key not in chosen:
            chosen[key] = self._automatic(*size) if self.tile == "auto" else self.side(self.tile)
        return chosen[key] if max(size) > chosen[key] else 0

    def side(self, wanted: int | str) -> int:
        """Round a side up to a multiple of the prior's ``multiple``, at least two times it."""
        return max(2, -(-int(wanted) // self.multiple)) * self.multiple

    def _automatic(self, height: int, width: int) -> int:
        if height * width <= SMALL:
            return 0
        free = free_host_bytes() if self.device.type == "cpu" else free_bytes(self.device)
        if free is None or free >= PLENTY * height * width:
            return 0
        planes, needs = SAMPLER_PLANES * 4 * height * width, {}
        for side in (0, *map(self.side, SIDES)):
            if side >= max(height, width):
                continue
            tile = (min(side, height), min(side, width)) if side else (height, width)
            if (need := self.inner.activation_bytes(1, *tile)) is None:
                return side
            needs[side] = need + (self._kept_in(side, 1, height, width) if self.keeps else 0)
            if needs[side] + planes <= SHARE * free:
                return side
        return min(needs, key=lambda side: needs[side])

    @torch.no_grad()
    def eps(
        self, x: Tensor, cond: Any, *, variance: bool = False, kept: Kept | None = None
    ) -> Tensor:
        """See :meth:`Prior.eps`; float32 if the picture is tiled."""
        options: Any = {"variance": variance, **passed(kept)}
        side = self.tile_at(*x.shape[-2:])
        if not side:
            return self.inner.eps(x, cond, **options)
        self.check_input(x, variance)
        rows, columns = (self._spans(n, side) for n in x.shape[-2:])
        channels = self.channels * (2 if variance else 1)
        out = torch.zeros((len(x), channels, *x.shape[2:]), dtype=torch.float32, device=x.device)
        for top, down in rows:
            for left, across in columns:
                part = (..., slice(top, top + len(down)), slice(left, left + len(across)))
                eps = self.inner.eps(x[part].contiguous(), cond, **options)
                # product and sum apart: fused, they would round differently at a vector's end
                out[part] += (eps.float() * down[:, None]).mul_(across)
        return out

    def _spans(self, length: int, side: int) -> list[Span]:
        """Return the tiles along an axis; they are kept, since captured graphs read them."""
        kept = self.inner.tilings.setdefault("spans", {})
        if (length, side) not in kept:
            overlap = overlap_of(side, self.multiple)
            starts = starts_of(length, side, overlap, self.multiple)
            weights = weights_of(starts, min(length, side)).to(self.device, torch.float32)
            if self.device.type == "cuda":  # calls on other streams will read them
                torch.cuda.current_stream(self.device).synchronize()
            kept[length, side] = list(map(Span, starts, weights))
        return kept[length, side]


def overlap_of(side: int, multiple: int) -> int:
    """Return the least overlap of tiles of that side: a quarter, rounded to ``multiple``."""
    return max(1, side // 4 // multiple) * multiple


def starts_of(length: int, side: int, overlap: int, multiple: int) -> list[int]:
    """Return where tiles of that side begin on an axis, evenly, overlapping by ``overlap`` or more.

    ``length``, ``side`` and ``overlap`` are multiples of ``multiple``, and so are the starts; one
    tile is used if it is enough.
    """
    rest = max(0, length - side)
    gaps = -(-rest // (side - overlap))
    return [0] + [rest * k // (gaps * multiple) * multiple for k in range(1, gaps + 1)]


def weights_of(starts: list[int], side: int) -> Tensor:
    """Compute the weights of tiles at those starts, float64 [tiles, side]; see the module.

    A ramp goes over the middle half of the overlap with the tile before, by u² (3 − 2u).
    """
    places = torch.tensor(starts)[:, None] + torch.arange(side) + 0.5  # of pixels, in the picture
    weights = torch.ones(len(starts), side, dtype=torch.float64)
    for k, (before, start) in enumerate(pairwise(starts), 1):
        overlap = before + side - start
        u = (places.double() - (start + overlap / 4)) / (overlap / 2)
        ramp = u.clamp(0, 1) ** 2 * (3 - 2 * u.clamp(0, 1))
        weights[:k] *= 1 - ramp[:k]
        weights[k] *= ramp[k]
    return weights
