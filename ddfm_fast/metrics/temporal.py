"""How steady a fused video is: the flow-warped error, and flicker, its part beyond the sources'.

Both are mean absolute gray levels (0..255) per pixel between each frame and the previous one; 0 is
best. They say nothing about sharpness: a gray screen has neither. Read them together with
``metrics.compute`` of single frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from .inputs import to_triple

NAMES = ("flicker", "warped_error")


@torch.no_grad()
def compute(fused: Iterable[Any], ir: Iterable[Any], vis: Iterable[Any]) -> dict[str, Tensor]:
    """Score a fused video against its two sources, frame by frame.

    ``warped_error``: mean of |F − ←F| over the pixels that are seen in both frames, ←F the frame
        before moved along the sources' optical flow (Lai et al. 2018, equation 13, with L1). Flow:
        DIS (OpenCV, preset medium) on the mean of the sources; seen in both: the forward and the
        backward flow agree (Sundaram et al. 2010). 0 where no pixel is.
    ``flicker``: mean of max(0, |F − ←F| − max(|I − ←I|, |V − ←V|)) over the same pixels: the change
        along the motion that neither source shows. A scale or a noise of the method that changes
        raises it; noise and light of a source do not.

    Args:
        fused: The frames in order, at least 2: luma in 0..255 (`metrics.to_luma` makes it from a
            file's pixels), uint8 or float, [H, W], NumPy or torch; an array [T, H, W] or any
            iterable, of which two frames at a time are held.
        ir: As many frames of the first source.
        vis: As many frames of the second source.

    Returns:
        Float64 [T − 1] tensors by the names in ``NAMES``.

    Raises:
        ValueError: There are fewer than 2 frames, lengths differ, or as in ``metrics.compute``.
        TypeError: As in ``metrics.compute``.
    """
    scores: dict[str, list[float]] = {name: [] for name in NAMES}
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    before = None
    for now in read_frames(fused, ir, vis):
        if before is not None:
            flicker, error = _changes(before, now, flow)
            scores["flicker"].append(flicker)
            scores["warped_error"].append(error)
        before = now
    if not scores["flicker"]:
        raise ValueError("fused: has fewer than 2 frames; expected a video of at least 2")
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in scores.items()}


def read_frames(*videos: Iterable[Any]):
    """Yield the planes (fused, ir, vis) of each frame, float32 [3, H, W]; ValueError on lengths."""
    iterators = [iter(video) for video in videos]
    names = ("fused", "ir", "vis")
    shape = None
    for n in range(2**63):
        frames = [next(iterator, None) for iterator in iterators]
        absent = [name for name, frame in zip(names, frames, strict=True) if frame is None]
        if absent:
            if len(absent) < 3:
                raise ValueError(
                    f"{', '.join(absent)}: ended after {n} frames and the others did not; "
                    "expected videos of one length"
                )
            return
        now = np.stack([p[0, 0].float().cpu().numpy() for p in to_triple(*frames)])
        if shape is not None and now.shape != shape:
            raise ValueError(
                f"fused: frame {n} has {now.shape[1]}x{now.shape[2]} pixels and the one before "
                f"{shape[1]}x{shape[2]}; expected frames of one size"
            )
        shape = now.shape
        yield now


def _changes(before: np.ndarray, now: np.ndarray, finder) -> tuple[float, float]:
    """Compute flicker and warped error of a frame, planes (fused, ir, vis) [3, H, W]."""
    a, b = (np.rint((p[1] + p[2]) / 2).astype(np.uint8) for p in (before, now))
    backward, forward = finder.calc(b, a, None), finder.calc(a, b, None)
    there = warp(forward, backward)
    mismatch = np.square(backward + there).sum(-1)
    seen = mismatch < 0.01 * (np.square(backward) + np.square(there)).sum(-1) + 0.5
    if not seen.any():
        return 0.0, 0.0
    moved = warp(np.ascontiguousarray(before.transpose(1, 2, 0)), backward)
    fused, *sources = np.abs(now - moved.transpose(2, 0, 1))
    excess = np.maximum(fused - np.maximum(*sources), 0)
    flicker, error = (float(p[seen].mean(dtype=np.float64)) for p in (excess, fused))
    return flicker, error


def warp(picture: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return the picture [H, W] or [H, W, C] sampled at (x + dx, y + dy) of the flow [H, W, 2].

    Sampling is bilinear, with edges repeated.
    """
    rows, columns = np.indices(flow.shape[:2], dtype=np.float32)
    at = (columns + flow[..., 0], rows + flow[..., 1])
    return cv2.remap(picture, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
