"""BiSWE and MS2R, by which VF-Bench (Zhao et al. 2025) compares fused videos; 0 is best of both.

Formulas are its public evaluator's. Its optical flow is a network (SEA-RAFT) that is not shipped
here: scores by another flow, such as the default's, can be compared with each other, but not with
the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .temporal import read_frames

NAMES = ("BiSWE", "MS2R")
FLOW_TOLERANCE = 1.0
"""pixels by which the flow there and back may miss for a pixel to count as seen"""

Flow = Callable[[np.ndarray, np.ndarray], np.ndarray]


class _Flows(NamedTuple):
    """Flows of fused, ir and vis between two consecutive frames, [3, H, W, 2]."""

    forward: np.ndarray
    backward: np.ndarray


@torch.no_grad()
def compute(
    fused: Iterable[Any], ir: Iterable[Any], vis: Iterable[Any], *, flow: Flow | None = None
) -> dict[str, Tensor]:
    """Score a fused video by three consecutive frames at a time.

    ``BiSWE`` (bi-directional self-warping error): the mean of |F − ←F| plus that of |F − →F|, gray
        levels; ←F and →F are the frames before and after, moved along the fused video's own flow.
        Means are over the pixels for which the flows there and back of both sources agree to
        within a pixel; 0 if there is none.
    ``MS2R`` (motion smoothness with dual reference videos): mean over the pixels, both components
        and both sources of the absolute difference between the change of the fused video's flow
        and the source's, pixels per frame².

    Args:
        fused: The frames in order, at least 3, as `metrics.temporal.compute` takes them.
        ir: As many frames of the first source.
        vis: As many frames of the second source.
        flow: What finds the motion of two frames, float32 [H, W] in 0..255: [H, W, 2], where a
            pixel (x, y) of the first lies in the second, minus (x, y). By default DIS of OpenCV,
            preset medium.

    Returns:
        Float64 [T − 2] tensors by the names in ``NAMES``.

    Raises:
        ValueError: There are fewer than 3 frames, lengths differ, the flow has another shape, or
            as in ``metrics.compute``.
        TypeError: As in ``metrics.compute``.
    """
    find = flow or _dense_flow()
    scores: dict[str, list[float]] = {name: [] for name in NAMES}
    before: np.ndarray | None = None
    earlier: _Flows | None = None
    oldest = before
    for now in read_frames(fused, ir, vis):
        if before is not None:
            later = _Flows(_motion(find, before, now), _motion(find, now, before))
            if earlier is not None and oldest is not None:
                scores["BiSWE"].append(_warping(oldest[0], before[0], now[0], earlier, later))
                change = later.forward - earlier.forward
                scores["MS2R"].append(float(np.abs(change[:1] - change[1:]).mean()))
            earlier = later
        oldest, before = before, now
    if not scores["BiSWE"]:
        raise ValueError("fused: has fewer than 3 frames; expected a video of at least 3")
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in scores.items()}


def _dense_flow() -> Flow:
    finder: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def find(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        first, second = (np.rint(p).astype(np.uint8) for p in (a, b))
        return finder.calc(first, second, None)

    return find


def _motion(find: Flow, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found = np.stack([np.asarray(find(*pair), np.float64) for pair in zip(a, b, strict=True)])
    if found.shape != (*a.shape, 2):
        raise ValueError(f"flow: gave shape {found.shape[1:]}, expected {(*a.shape[1:], 2)}")
    return found


def _warping(
    before: np.ndarray, now: np.ndarray, after: np.ndarray, earlier: _Flows, later: _Flows
) -> float:
    """Compute BiSWE of the frame in the middle."""
    error = 0.0
    for there, back, other in (
        (earlier.backward, earlier.forward, before),
        (later.forward, later.backward, after),
    ):
        seen = np.ones(now.shape, bool)
        for source in (1, 2):
            miss = there[source] + _moved(back[source], there[source])
            seen &= np.hypot(miss[..., 0], miss[..., 1]) < FLOW_TOLERANCE
        difference = np.abs(now - _moved(other[..., None], there[0])[..., 0])
        error += float(difference[seen].mean()) if seen.any() else 0.0
    return error


def _moved(picture: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return the picture [H, W, C] at (x + dx, y + dy), bilinear in float64, edges repeated."""
    height, width = flow.shape[:2]
    rows, columns = np.indices((height, width))
    x = (columns + flow[..., 0]) * (2 / (width - 1)) - 1
    y = (rows + flow[..., 1]) * (2 / (height - 1)) - 1
    planes = torch.from_numpy(np.asarray(picture, np.float64)).permute(2, 0, 1)[None]
    at = torch.from_numpy(np.stack([x, y], -1))[None]
    moved = F.grid_sample(planes, at, padding_mode="border", align_corners=True)
    return moved[0].permute(1, 2, 0).numpy()
