"""Whether an image is a photograph or a functional map in false color, such as PET or SPECT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLACK = 1.5 / 255
"""level up to which a pixel counts as a map's empty ground"""
BLACK_SHARE = 0.2
"""least share of the pixels that is empty; the corners always are"""
SATURATION = 0.3
SATURATED_SHARE = 0.4
"""least share of the pixels that are not dark whose saturation is above ``SATURATION``"""
_EMPTY = 6 / 255
"""level of an empty median, which noise leaves somewhat above black"""
_DARK = 24 / 255
_BLOCK, _SIDE = 4, 256
"""side of the blocks whose median is taken, and the shorter side that suffices for a judgment"""
_CORNER = 16

Array = np.ndarray[Any, np.dtype[Any]]
Unit = Callable[[Tensor], Tensor]
"""values of an image → float32 in [0, 1], never decreasing"""


def is_functional(rgb: Tensor, unit: Unit = torch.Tensor.float) -> list[bool]:
    """Return which images look like functional maps: strong false color on empty, black ground.

    Medians are taken of the original values and then converted, which gives the same numbers.

    Args:
        rgb: [N, C, H, W], any strides; gray images are none.
        unit: Converts its values to [0, 1].

    Returns:
        A bool per image.
    """
    if rgb.shape[1] == 1:
        return [False] * len(rgb)
    step = max(1, min(rgb.shape[-2:]) // _SIDE)

    def as_unit(values: Array) -> Array:
        return unit(torch.from_numpy(np.ascontiguousarray(values))).numpy()

    thin = rgb[..., ::step, ::step].cpu().numpy()
    return [_is_functional(_blocks(image), as_unit) for image in thin]


def _is_functional(blocks: Array, unit: Callable[[Array], Array]) -> bool:
    side = max(1, min(blocks.shape[1:3]) // _CORNER)
    ends = slice(None, side), slice(-side, None)
    corners = (_median(_medians(blocks[:, r, c]).ravel()) for r in ends for c in ends)
    if any(unit(corner) > np.float32(BLACK) for corner in corners):
        return False  # most photographs end here; the other medians are needed only for maps
    image = unit(_medians(blocks))
    brightest = image.max(0)
    if _share(brightest <= np.float32(_EMPTY)) < BLACK_SHARE:
        return False
    lit = brightest > np.float32(_DARK)
    if not lit.any():
        return False
    saturation = (brightest - image.min(0)) / np.maximum(brightest, np.float32(_DARK))
    return _share(saturation[lit] > np.float32(SATURATION)) >= SATURATED_SHARE


def _blocks(image: Array) -> Array:
    """View an image [C, H, W] as blocks [C, H / b, W / b, b, b], b = 4, or less if it is small.

    Their medians are free of noise. On black ground half of the noise is clipped, so that the
    median stays black.
    """
    block = min(_BLOCK, max(1, min(image.shape[-2:]) // 16))
    windows = np.lib.stride_tricks.sliding_window_view(image, (block, block), axis=(1, 2))
    return windows[:, ::block, ::block]


def _medians(blocks: Array) -> Array:
    return _median(blocks.reshape(*blocks.shape[:3], -1))


def _median(values: Array) -> Array:
    """Return the lower median along the last axis, a value that occurs."""
    middle = (values.shape[-1] - 1) // 2
    return np.asarray(np.partition(values, middle, axis=-1)[..., middle])


def _share(flags: Array) -> float:
    return float(np.float32(flags.sum()) / np.float32(flags.size))
