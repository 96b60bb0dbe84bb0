"""Fused images scored against their two sources, by name and convention."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..images.planes import MIN_SIZE
from . import feature_information, measures, perception
from .conventions import CONVENTIONS, DEFAULT, LOWER, NAMES, ON_REQUEST, Convention
from .inputs import to_triple
from .learned import LEARNED

_CUDA_CHUNK = 1 << 24

_ALONE = {
    "EN": measures.fused_entropy,
    "SD": measures.standard_deviation,
    "SF": measures.spatial_frequency,
    "AG": measures.average_gradient,
}
_PER_SOURCE: dict[str, Callable[[Tensor, Convention], Tensor]] = {
    "MI": measures.mutual_information,
    "VIF": measures.visual_information_fidelity,
    "SSIM": measures.structural_similarity,
    "MS-SSIM": measures.multi_scale_similarity,
    "SCD": measures.correlation_of_differences,
    "CC": measures.source_correlation,
    "MSE": measures.squared_error,
    "NMI": measures.normalized_information,
    "FMI-pixel": feature_information.pixel_information,
    "FMI-gradient": feature_information.gradient_information,
    **LEARNED,
}
_PAIR_AND_SOURCES = {
    "Qabf": measures.edge_preservation,
    "PSNR": measures.peak_ratio,
    "Qcb": perception.contrast_preservation,
    "Qcv": perception.regional_error,
}


@torch.no_grad()
def compute(
    fused: Any,
    ir: Any,
    vis: Any,
    *,
    convention: str = DEFAULT,
    names: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """Score fused images against their two sources.

    Computed on fused's device, in float64. On a CPU a batch gives each image the bytes it gets
    alone.

    Args:
        fused: Luma in 0..255 (`to_luma` makes it from a file's pixels), uint8 or float, a NumPy
            array or torch tensor of shape [H, W], [N, H, W] or [N, 1, H, W], at least 16 × 16.
        ir: The first source, of fused's shape.
        vis: The second source, of fused's shape.
        convention: A key of `CONVENTIONS`, whose ``definitions[name]`` describe the metrics.
        names: Which of `NAMES`, in any order; None for all that images of this size have
            (`smallest_size`), except those in `ON_REQUEST`.

    Returns:
        Float64 [N] tensors in the order of `NAMES`. A metric of both sources comes as ``name``
        (the convention's combination of the two), ``name_ir``, ``name_vis`` and ``name_min``: the
        worse source, ``name_max`` for those in `LOWER`, of which less is better. All are finite: a
        correlation with a constant image is 0, VIF and Qabf of a flat source are 1, PSNR is kept
        in ±100 dB.

    Raises:
        TypeError: A container or dtype is not supported.
        ImportError: A named metric's package is missing.
        ValueError: Shapes differ or are not supported; values are NaN, infinite, outside 0..255 or
            in 0..1; the convention or a name is unknown; or a named metric needs larger images or
            missing weights.
    """
    chosen = _convention(convention)
    planes = to_triple(fused, ir, vis)
    wanted = _names(names, min(planes[0].shape[-2:]))
    images, _, height, width = planes[0].shape
    device = planes[0].device
    chunk = 1 if device.type == "cpu" else max(1, _CUDA_CHUNK // (height * width))
    parts = []
    for start in range(0, images, chunk):
        triple = torch.cat([p[start : start + chunk].double() for p in planes], 1)
        parts.append(_score(triple.clamp_(0, 255), chosen, wanted))
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def smallest_size(name: str) -> int:
    """Return the least height and width, in pixels, for which metric ``name`` is defined."""
    return measures.SMALLEST.get(name, MIN_SIZE)


def _score(planes: Tensor, convention: Convention, names: list[str]) -> dict[str, Tensor]:
    scores = {}
    for name in names:
        if name in _ALONE:
            scores[name] = _ALONE[name](planes, convention)
            continue
        if name in _PAIR_AND_SOURCES:
            pair, each = _PAIR_AND_SOURCES[name](planes, convention)
        else:
            each = _PER_SOURCE[name](planes, convention)
            pair = each.mean(1) if name in convention.averaged else each.sum(1)
        scores[name] = pair
        scores[f"{name}_ir"], scores[f"{name}_vis"] = each.unbind(1)
        if name in LOWER:
            scores[f"{name}_max"] = each.amax(1)
        else:
            scores[f"{name}_min"] = each.amin(1)
    return scores


def _convention(name: str) -> Convention:
    if name not in CONVENTIONS:
        raise ValueError(f"convention: got {name!r}, expected one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def _names(names: Iterable[str] | None, side: int) -> list[str]:
    if names is None:
        return [name for name in NAMES if smallest_size(name) <= side and name not in ON_REQUEST]
    if isinstance(names, str):
        raise TypeError(f"names: got the string {names!r}, expected several: names=[{names!r}]")
    asked = set(names)
    unknown = asked - set(NAMES)
    if unknown:
        listed = ", ".join(sorted(map(repr, unknown)))
        raise ValueError(f"names: {listed} unknown, expected names among {', '.join(NAMES)}")
    for name in asked:
        if smallest_size(name) > side:
            raise ValueError(
                f"names: {name} needs at least {smallest_size(name)} pixels a side, these images "
                f"have {side}; name the others (--extra), or pass names=None for all that fit"
            )
    return [name for name in NAMES if name in asked]
