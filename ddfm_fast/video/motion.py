"""What the sources alone say about a new frame: how it moved, and whether the scene was cut.

It runs on the CPU during the fusion of the previous frame (OpenCV releases Python's lock), so with
a GPU it takes no time from the loop.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from typing_extensions import Unpack

from ..align.streams import StreamAligner
from ..images.color import luma
from ..images.planes import to_planes
from ..images.ranges import by_source
from ..images.steady import SteadyRanges
from ..metrics.temporal import warp
from ..options import ReadingOptions

CUT_CORRELATION = 0.85
"""Between frames of one scene the correlation was above 0.93, ten frames apart or panned by 40
pixels; between unrelated scenes it was below 0.84 in all of 110 pairs. A missed cut spoils only the
output scale: where the sources differ, nothing of the previous frame is used anyway."""
_DESCENTS, _REFINEMENTS = 8, 2
"""iterations of the flow's search, instead of 16 and 5, which takes two thirds of the time. Frames
moved by the flow then differ by 0.6 % more on a street, and a fused pan flickers by 0.6 to 0.9 %
more; no score changes."""
_COARSE = 40
"""width in pixels of the pictures that are correlated: noise is averaged away"""
_FINER = 4
"""pictures are moved along the flow at this many times that width before they are correlated"""
_FLAT = 1.0
"""gray levels of standard deviation below which a picture has nothing to correlate"""


class Motion(NamedTuple):
    """A frame compared with the previous one."""

    flow: np.ndarray | torch.Tensor | None
    """float32 [H, W, 2], (dx, dy) in pixels: pixel (x, y) was at (x + dx, y + dy); None at a cut"""
    cut: bool
    """True for the first frame of a scene, and so for the first of all"""


class MotionFinder:
    """Optical flow (DIS, Kroeger et al. 2016, by OpenCV) and scene cuts of one stream of pairs.

    Both are found on the mean of the two sources, so that a target which only one of them shows
    counts. A frame starts a new scene if the previous frame, moved along the flow, correlates with
    it by less than ``CUT_CORRELATION`` at a width of 40 pixels. Ranks ignore brightness, contrast
    and the level of the brightest spot, so a flash, a lamp or a camera's gain control is not a cut.
    """

    def __init__(self, aligner: StreamAligner | None = None, **reading: Unpack[ReadingOptions]):
        """``aligner``: brings pairs together first; ``reading``: as in the call of ``Fuser``."""
        self._reading, self._aligner = reading, aligner
        self._ranges = SteadyRanges(told=False)
        self._flow: Any = _flow_finder()
        self._before: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_flow"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _flow=_flow_finder())

    def __call__(self, ir: Any, vis: Any) -> Motion:
        """Find the motion of the next pair: images of any container `to_planes` reads.

        The fusion itself refuses a pair of unequal sizes.
        """
        now = self._mean(ir, vis, cut=False)
        if now is None:
            return Motion(None, True)
        before, self._before = self._before, now
        if before is not None and before.shape == now.shape:
            flow = self._flow.calc(now, before, None)
            if _moved_correlation(now, before, flow) >= CUT_CORRELATION:
                return Motion(flow, False)
        if before is not None:
            self.begin(ir, vis)
        return Motion(None, True)

    def begin(self, ir: Any, vis: Any) -> None:
        """Treat the last pair, as it is read now, as the first of a scene."""
        self._before = self._mean(ir, vis, cut=True)

    def _mean(self, ir: Any, vis: Any, *, cut: bool) -> np.ndarray | None:
        """Return the mean of both lumas, uint8 [H, W]; None for a pair of unequal sizes."""
        nodata = self._reading.get("nodata")
        ranges = self._ranges(ir, vis, self._reading.get("value_range"), nodata, cut=cut)
        nothing = by_source(nodata, "nodata")
        a, b = (
            gray8(
                image, name, value_range=None if ranges[name] == "dtype" else ranges[name],
                layout=self._reading.get("layout"), nodata=nothing[name],
            )
            for name, image in (("ir", ir), ("vis", vis))
        )  # fmt: skip
        if self._aligner is not None:
            a, b = self._aligner.placed(a, b) if cut else self._aligner.frame(a, b)
            if cut:
                self._aligner.look(a, b, again=True)
        return cv2.addWeighted(a, 0.5, b, 0.5, 0) if a.shape == b.shape else None


def _flow_finder() -> Any:
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    finder.setGradientDescentIterations(_DESCENTS)
    finder.setVariationalRefinementIterations(_REFINEMENTS)
    return finder


def _moved_correlation(now: np.ndarray, before: np.ndarray, flow: np.ndarray) -> float:
    """Correlate a picture with the previous one, moved along the flow, at a sufficient size."""
    times = max(1, now.shape[1] // (_FINER * _COARSE))
    if times > 1:
        size = now.shape[1] // times, now.shape[0] // times
        now, before = (cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in (now, before))
        flow = cv2.resize(flow, size, interpolation=cv2.INTER_AREA) / np.float32(times)
    return correlation(now, warp(before, flow))


def gray8(image: Any, name: str, **reading: Unpack[ReadingOptions]) -> np.ndarray:
    """Read the luma of one image as uint8 [H, W]: NumPy the fast way, all else by `to_planes`."""
    plain = all(value is None for value in reading.values())
    if plain and isinstance(image, np.ndarray) and image.dtype in (np.uint8, np.uint16):
        if image.ndim == 3 and image.shape[2] == 3:
            image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
        if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
            image = image.reshape(image.shape[:2])
            return image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
    planes, _ = to_planes(image, name, **reading)
    return (luma(planes)[0, 0] * 255).round().byte().cpu().numpy()


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation of two gray pictures [H, W] at a width of 40 pixels.

    It is from −1 to 1; 1 if both are flat, 0 if only one is.
    """
    height = max(8, round(_COARSE * a.shape[0] / a.shape[1]))
    a, b = (
        cv2.resize(p, (_COARSE, height), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
        for p in (a, b)
    )
    flat = a.std() < _FLAT, b.std() < _FLAT
    if any(flat):
        return float(all(flat))
    a, b = (p.argsort(kind="stable").argsort() for p in (a, b))
    return float(np.corrcoef(a, b)[0, 1])
