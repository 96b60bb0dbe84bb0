"""What visitors see: 8-bit pictures for the browser, the same place of all three, and scores."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from ..files.depth import Sources
from ..images.panel import to_rgb8
from ..metrics.conventions import CONVENTIONS, DEFAULT
from ..metrics.guard import near_copy
from ..metrics.inputs import to_luma
from ..metrics.scores import compute, smallest_size

NAMES = ("ir", "vis", "fused")
SHOWN = 1600
"""pixels of the longer side of a picture in the browser"""
CROP = 420
"""pixels of the shorter side of an enlarged part"""
SCORED = 2**22
"""most pixels for which a result is scored: more takes too long"""
COLUMNS = ("EN", "SD", "MI", "VIF", "Qabf", "SSIM", "SCD", "CC")

Array = np.ndarray[Any, np.dtype[Any]]


class Views(NamedTuple):
    """Files of a result, in a folder of their own; arrays are kept so that parts can be cut out."""

    folder: Path
    size: tuple[int, int]
    """(height, width)"""
    place: tuple[float, float]
    """where the sources differ most: shares of width and height"""

    def shown(self, name: str) -> str:
        """Return the picture of a name of ``NAMES``."""
        return str(self.folder / f"{name}.png")

    def parts(self, across: float, down: float, side: float) -> list[Array]:
        """Cut the same place out of all three, enlarged.

        Args:
            across: Its center, as a share of the width; ``down``: of the height.
            down: See ``across``.
            side: The part's side, in pixels.
        """
        height, width = self.size
        side = max(8, min(int(side), height, width))
        left = round(min(max(across * width - side / 2, 0), width - side))
        top = round(min(max(down * height - side / 2, 0), height - side))
        by = max(1, round(CROP / side))
        cut = []
        for name in NAMES:
            whole = np.load(self.folder / f"{name}.npy", mmap_mode="r")
            part = to_rgb8(np.asarray(whole[top : top + side, left : left + side]))
            cut.append(cv2.resize(part, None, fx=by, fy=by, interpolation=cv2.INTER_NEAREST))
        return cut


def make_views(folder: Path, sources: Sources, fused: Array) -> Views:
    """Write what the page shows of a result."""
    height, width = fused.shape[:2]
    fused = fused[..., 0] if fused.shape[2:] == (1,) else fused
    pictures = [image[:height, :width] for image in (sources.ir, sources.vis, fused)]
    for name, picture in zip(NAMES, pictures, strict=True):
        np.save(folder / f"{name}.npy", picture)
        shown = Image.fromarray(to_rgb8(picture))
        shown.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
        shown.save(folder / f"{name}.png", compress_level=3)
    return Views(folder, (height, width), _busiest(*map(to_rgb8, pictures[:2])))


def _busiest(ir: Array, vis: Array) -> tuple[float, float]:
    """Return where the details of two pictures differ most."""
    scale = min(1.0, 320 / max(ir.shape[:2]))
    size = tuple(max(1, round(n * scale)) for n in ir.shape[1::-1])
    a, b = (
        cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
        for image in (ir, vis)
    )
    a, b = (image.astype(np.float32) - cv2.blur(image, (31, 31)) for image in (a, b))
    found = cv2.blur(np.abs(a - b), (25, 25), borderType=cv2.BORDER_CONSTANT)
    y, x = np.unravel_index(int(found.argmax()), found.shape)
    return float((x + 0.5) / size[0]), float((y + 0.5) / size[1])


def score(views: Views) -> tuple[str, list[str]]:
    """Score a result against its sources, as ``ddfm-fast evaluate`` does.

    Returns:
        A grid in HTML, and sentences; only a sentence if the pictures are too large.
    """
    height, width = views.size
    if height * width > SCORED:
        many = f"{height * width / 1e6:.0f} million pixels"
        return "", [f"not scored: {many} take long; `ddfm-fast evaluate` does it"]
    i, v, f = (to_luma(np.load(views.folder / f"{name}.npy")) for name in NAMES)
    names = [name for name in COLUMNS if smallest_size(name) <= min(height, width)]
    scores = compute(f, i, v, names=names)
    words = CONVENTIONS[DEFAULT].definitions
    cells = ["Metric", "Value", "Worse source"]
    for name in names:
        worse = scores.get(f"{name}_min")
        cells += [name, _shown(scores[name]), "" if worse is None else _shown(worse)]
    titles = ["", *(html.escape(words[name]) for name in names)]
    drawn = "".join(f'<span title="{titles[n // 3]}">{cell}</span>' for n, cell in enumerate(cells))
    copied = near_copy(f, i, v)
    said = [f"the result is nearly a copy of {copied}: high scores mean nothing"] if copied else []
    return f'<div class="scores">{drawn}</div>', said


def _shown(score: Any) -> str:
    return f"{float(score):.3f}"
