"""Whether an image is a photograph or a functional map in false color, as PET and SPECT are."""

from __future__ import annotations

from torch import Tensor

BLACK = 1.5 / 255
"""what counts as the empty ground of a map"""
BLACK_SHARE = 0.2
"""least share of the pixels that is empty; the corners are, always"""
SATURATION = 0.3
SATURATED_SHARE = 0.4
"""least share of the pixels that are not dark, whose saturation is above ``SATURATION``"""
_EMPTY = 6 / 255
"""of a median, which noise leaves somewhat above black"""
_DARK = 24 / 255
_BLOCK, _SIDE = 4, 256
"""pixels that a median is taken of, and the shorter side that is enough to judge by"""
_CORNER = 16


def is_functional(rgb: Tensor) -> list[bool]:
    """Tell which images look like functional maps: strong false color on empty, black ground.

    Args:
        rgb: [N, C, H, W] in [0, 1]; gray images are none.

    Returns:
        A bool per image.
    """
    if rgb.shape[1] == 1:
        return [False] * len(rgb)
    return [_is_functional(image) for image in rgb]


def _is_functional(image: Tensor) -> bool:
    image = _medians(image)
    brightest = image.amax(0)
    side = max(1, min(image.shape[-2:]) // _CORNER)
    corners = [
        part[..., columns]
        for part in (image[:, :side], image[:, -side:])
        for columns in (slice(None, side), slice(-side, None))
    ]
    if any(bool(corner.flatten().median() > BLACK) for corner in corners):
        return False
    if float((brightest <= _EMPTY).float().mean()) < BLACK_SHARE:
        return False
    lit = brightest > _DARK
    if not bool(lit.any()):
        return False
    saturation = (brightest - image.amin(0)) / brightest.clamp(min=_DARK)
    return float((saturation[lit] > SATURATION).float().mean()) >= SATURATED_SHARE


def _medians(image: Tensor) -> Tensor:
    """Medians of blocks [C, H / b, W / b], b = 4 or less of a small image: noise is gone.

    On black ground half of it is clipped, so that the median stays black.
    """
    step = max(1, min(image.shape[-2:]) // _SIDE)
    image = image[:, ::step, ::step]
    block = min(_BLOCK, max(1, min(image.shape[-2:]) // 16))
    blocks = image.unfold(1, block, block).unfold(2, block, block).flatten(-2)
    return blocks.median(dim=-1).values
