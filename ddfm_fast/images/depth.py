"""Images of 8 and of 16 bits brought together."""

from __future__ import annotations

import numpy as np


def same_depth(ir: np.ndarray, vis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make both images uint16 when one is: 8 bits become 16 exactly (257 · 255 = 65535)."""
    return (ir, vis) if ir.dtype == vis.dtype else (_deep(ir), _deep(vis))


def _deep(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint16 else image.astype(np.uint16) * 257
