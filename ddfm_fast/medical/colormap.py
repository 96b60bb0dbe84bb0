"""Colors for gray volumes, such as PET."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from .volume import Array

Colors = Callable[[Array], Array]
"""values [H, W] float32 in [0, 1] → RGB [H, W, 3] float32 in [0, 1]"""
PREFIX = "COLORMAP_"
NAMES = tuple(sorted(name[len(PREFIX) :].lower() for name in dir(cv2) if name.startswith(PREFIX)))
"""names of OpenCV's maps"""


def color_map(name: Any) -> Colors | None:
    """Return the map of that name, interpolated between its 256 colors; None for none.

    Raises:
        ValueError: There is no such map.
    """
    if name is None:
        return None
    if not isinstance(name, str) or name.lower() not in NAMES:
        raise ValueError(f"colormap is {name!r}; expected one of {', '.join(NAMES)}")
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    bgr = cv2.applyColorMap(ramp, getattr(cv2, PREFIX + name.upper()))[:, 0]
    table = bgr[:, ::-1].astype(np.float32) / 255

    def colors(unit: Array) -> Array:
        at = unit * np.float32(255)
        below = np.minimum(at.astype(np.int64), 254)
        share = (at - below).astype(np.float32)[..., None]
        return table[below] * (1 - share) + table[below + 1] * share

    return colors
