"""A clip that may be redistributed: a camera circles over the satellite pair of the demo."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from ..api import Fuser
from ..datasets.demo import asset
from ..files.paths import ensure_writable_dir
from .pipeline import fuse_video
from .sinks import open_sink
from .sources import ArraySource

RATE = 25
LAP = 75
"""frames per circle"""
_RADIUS = 40.0
"""pixels of the 300x300 pictures"""


def pan(frames: int, height: int = 192, width: int = 192) -> tuple[list, list]:
    """Make (infrared [H, W], visible [H, W, 3]) uint8 frames, 75 per circle of 3.4 pixels each.

    The frames are a window of at most 192x192 pixels of the pictures, moved by fractions of a pixel
    (bicubic), and enlarged, motion included, if more pixels are wanted. The same arguments give the
    same bytes.
    """
    ir, vis = asset("sentinel2_nir.png"), asset("sentinel2_visible.png")
    zoom = max(height, width) / 192
    found: tuple[list, list] = ([], [])
    for n in range(frames):
        angle = 2 * math.pi * n / LAP
        x = 150 + _RADIUS * math.cos(angle) - width / zoom / 2
        y = 150 + _RADIUS * math.sin(angle) - height / zoom / 2
        matrix = np.array([[zoom, 0, -zoom * x], [0, zoom, -zoom * y]], np.float32)
        for frames_of, image in zip(found, (ir, vis), strict=True):
            frames_of.append(cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC))
    return found


def run(
    out: str | Path = "out", *, device: str | None = None, progress: bool = False
) -> list[Path]:
    """Write the clip's two streams, 3 seconds each, and their fusion; return the files.

    Preset ``realtime``, embedded prior. Raises ValueError if ``out`` cannot be written,
    ImportError without PyAV.
    """
    out = ensure_writable_dir(out)
    ir, vis = (out / f"pan_{name}.mp4" for name in ("ir", "vis"))
    for path, frames in zip((ir, vis), pan(LAP), strict=True):
        sink = open_sink(path, ArraySource(frames, path.name, Fraction(RATE)), crf=8)
        for n, frame in enumerate(frames):
            sink.write(frame, Fraction(n, RATE), n)
        sink.finish()
    fused = out / "pan_fused.mp4"
    report = fuse_video(
        ir, vis, fused, fuser=Fuser(device=device), preset="realtime", progress=progress
    )
    print(
        f"{fused}  {report.frames} frames, {report.fps:.1f} frames/s, from {ir} and {vis}",
        file=sys.stdout,
    )
    return [ir, vis, fused]
