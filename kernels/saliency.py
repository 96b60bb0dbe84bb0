"""The closed-form target on a GPU: a faster version of ``ddfm_fast.target.choose.choose``.

Twins: ``ddfm_fast.target`` (``choose``, ``terms``, ``pyramid``), whose docstrings have the method.
Stacks of planes [P, N, H, W] go through memory, one launch for all of a stack:

    down_kernel      G_k of both sources → G_{k+1}, with the products that maps need; maps
    map_kernel       local means → sky (level 1), conflict (2), pick (3), guided filter (2)
    salience_kernel  level 2: histograms → salience of each gray, one program per image
    weight_kernel    level 2: salience, sources → raw weight, and the filter's guide
    base_kernel      coarsest level of the result, one program per image
    up_kernel        maps → those of the finer level; G_k, G_{k+1} → bands
    band_kernel      bands, maps, result of level k + 1 → result of level k

The binomial filter applied twice is one filter of nine taps, since it keeps borders mirrored:
[1, 8, 28, 56, 70, 56, 28, 8, 1] / 256. Sums are added in a fixed order, gray levels counted in
integers, and nothing depends on N: the same bytes from run to run, alone or in a batch.

A scene with five bands takes 32 launches, one of them PyTorch's; functional maps take 17. Pictures
with fewer than three bands take one more. A batch of both kinds is taken in two parts. The kernels
agree with their twins in Triton's interpreter; they have not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ddfm_fast.target.choose import FUNCTIONAL, LEVELS, PHOTOGRAPHIC, Terms
from ddfm_fast.target.pyramid import depth

from .checks import check_plane, on_device
from .saliency_kernels import (
    CONFLICT,
    PICK,
    SKY,
    WEIGHT,
    band_kernel,
    base_kernel,
    down_kernel,
    map_kernel,
    salience_kernel,
    up_kernel,
    weight_kernel,
)

BLOCK_H, BLOCK_W = 4, 64
"""the tile of a program"""
COUNT_BLOCK, SUM_BLOCK = 4096, 1024
"""pixels that are counted, or added up, at a time"""
LEAST_SIDE = 16


def choose_planes(ir: Tensor, vis: Tensor, functional: Sequence[bool] | None = None) -> Tensor:
    """Fuse lumas in closed form: ``ddfm_fast.target.choose.choose`` on a GPU, to rounding.

    Args:
        ir: float32 [N, 1, H, W] in [0, 1], any strides, H and W of at least 16.
        vis: Like ir.
        functional: For each pair, whether its terms are ``FUNCTIONAL``; none by default.

    Returns:
        float32 [N, 1, H, W] contiguous.

    Raises:
        TypeError: A source has another dtype.
        ValueError: A source has another shape or device, or ``functional`` of another length.
    """
    _check(ir, vis)
    flags = list(functional or [False] * len(ir))
    if len(flags) != len(ir):
        raise ValueError(f"functional holds {len(flags)} flags; expected {len(ir)}, one a pair")
    with torch.no_grad(), on_device(ir):
        sources = torch.stack((ir[:, 0], vis[:, 0]))
        if len(set(flags)) == 1:
            return _choose(sources, FUNCTIONAL if flags[0] else PHOTOGRAPHIC)[:, None]
        out = torch.empty_like(sources[0])
        for terms, is_map in ((PHOTOGRAPHIC, False), (FUNCTIONAL, True)):
            where = torch.tensor([k for k, flag in enumerate(flags) if flag == is_map])
            where = where.to(ir.device)
            out[where] = _choose(sources.index_select(1, where), terms)
        return out[:, None]


def _check(ir: Tensor, vis: Tensor) -> None:
    if ir.ndim != 4 or ir.shape[1] != 1 or min(ir.shape[2:]) < LEAST_SIDE:
        raise ValueError(
            f"ir has shape {tuple(ir.shape)}; expected [N, 1, H, W], sides of at least {LEAST_SIDE}"
        )
    if len(ir) > 65535:
        raise ValueError(f"ir holds {len(ir)} images; expected at most 65535: split the batch")
    check_plane("ir", ir, ir.shape, [torch.float32], dense=False)
    check_plane("vis", vis, ir.shape, [torch.float32], device=ir.device, dense=False)


def _launch(kernel, out: Tensor, planes: int, *arguments, **constants) -> None:
    """Launch over the tiles of ``planes`` planes of out [·, N, H, W]."""
    n, height, width = out.shape[-3:]
    tiles = triton.cdiv(height, BLOCK_H) * triton.cdiv(width, BLOCK_W)
    kernel[tiles, n, planes](*arguments, **constants, BLOCK_H=BLOCK_H, BLOCK_W=BLOCK_W)


def _choose(sources: Tensor, terms: Terms) -> Tensor:
    """Fuse sources [2, N, H, W] to [N, H, W], all by the same terms."""
    levels, n = depth(sources.shape[2], sources.shape[3], LEVELS), sources.shape[1]
    base = terms.salient, terms.bright
    with_maps = any((terms.sky_share, terms.sky_coring, terms.sky_base, terms.conflict, *base))
    levels_g = _gaussians(sources, levels, with_maps)
    maps = _maps(levels_g, terms) if with_maps else [None] * (levels + 1)
    last = levels_g[levels]
    out = last.new_empty(last.shape[1:])
    base_kernel[1, n](
        last, maps[levels], out, out[0].numel(), terms.sky_base, terms.contrast,
        terms.most_contrast, STRETCH=terms.contrast > 0, BLOCK=SUM_BLOCK,
    )  # fmt: skip
    for k in reversed(range(levels)):
        fine, coarse = levels_g[k], out
        detail, out = fine.new_empty(2, *fine.shape[1:]), fine.new_empty(fine.shape[1:])
        size = fine.shape[2:]
        _launch(up_kernel, detail, 2, levels_g[k + 1], fine, detail, *size, FIRST=0)
        _launch(
            band_kernel, out, 1, detail, coarse, maps[k], None if k else fine, out,
            terms.share, terms.gain, terms.coring / 255, terms.sky_coring / 255, terms.sky_share,
            *size,
        )  # fmt: skip
    return out


def _gaussians(sources: Tensor, levels: int, with_maps: bool) -> list[Tensor]:
    """Build the pyramid of both sources, with the products that the maps of levels 1 and 2 need."""
    planes = [sources]
    for k in range(levels):
        count = (3, 5)[k] if with_maps and k < 2 else 2
        planes.append(_down(planes[-1], count, count, products=True))
    return planes


def _down(x: Tensor, planes: int, room: int, *, first: int = 0, products: bool = False) -> Tensor:
    """Halve planes of x into a stack that has room for others."""
    height, width = x.shape[2:]
    out = x.new_empty(room, x.shape[1], (height + 1) // 2, (width + 1) // 2)
    _launch(down_kernel, out, planes, x, out, height, width, FIRST=first, PRODUCTS=products)
    return out


def _maps(levels_g: list[Tensor], terms: Terms) -> list[Tensor]:
    """Compute each level's maps: where they are known, then at coarser levels, then at finer."""
    first = levels_g[1].new_empty(4, *levels_g[1].shape[1:])
    _map_stage("sky", levels_g[1], first, SKY)
    second = _down(first, 1, 4, first=SKY)
    var = second.new_empty(2, *second.shape[1:])
    _map_stage("conflict", levels_g[2], second, CONFLICT, var=var, most=terms.conflict)
    _weigh(levels_g[2], second, terms)
    third = _down(second, 3, 4)
    sources = levels_g[3] if len(levels_g) > 3 else _down(levels_g[2], 2, 2)
    _map_stage("pick", _down(var, 2, 2), third, PICK, guide=sources)
    maps = [first.new_empty(4, *levels_g[0].shape[1:]), first, second, third]
    while len(maps) < len(levels_g):
        maps.append(_down(maps[-1], 4, 4))
    for k, plane in ((2, PICK), (1, CONFLICT), (0, SKY)):
        _launch(
            up_kernel, maps[k], 4 - plane, maps[k + 1], None, maps[k], *maps[k].shape[2:],
            FIRST=plane,
        )  # fmt: skip
    return maps


def _map_stage(
    stage: str, x: Tensor, out: Tensor, plane: int, *,
    guide: Tensor | None = None, var: Tensor | None = None, most: float = 0.0,
) -> None:  # fmt: skip
    _launch(map_kernel, out, 1, x, guide, out, var, most, *x.shape[2:], STAGE=stage, FIRST=plane)


def _weigh(x: Tensor, maps: Tensor, terms: Terms) -> None:
    """Compute the plane WEIGHT of level 2's maps from i and v there."""
    n, height, width = x.shape[1:]
    table, raw, fit = x.new_empty(2, n, 256), *x.new_empty(2, 2, n, height, width)
    salience_kernel[1, n, 2](x, table, height * width, BLOCK=COUNT_BLOCK)
    _launch(
        weight_kernel, raw, 1, x, table, raw, terms.salient, terms.bright, terms.slope,
        height, width,
    )  # fmt: skip
    _map_stage("fit", raw, fit, 0)
    _map_stage("guided", fit, maps, WEIGHT, guide=raw)
