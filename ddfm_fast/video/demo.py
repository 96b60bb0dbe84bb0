"""A clip that may be redistributed: a camera that circles over the satellite pair of the demo."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from ..datasets.demo import asset
from ..images.files import ensure_writable_dir
from .pipeline import fuse_video
from .sinks import open_sink
from .sources import ArraySource

RATE = 25
_LAP = 75
"""frames of one circle"""
_RADIUS = 40.0
"""pixels of the 300x300 pictures"""


def pan(frames: int, height: int = 192, width: int = 192) -> tuple[list, list]:
    """(infrared [H, W], visible [H, W, 3]) uint8 frames: 75 make a circle, 3.4 pixels a frame.

    A window of at most 192x192 pixels of the pictures, moved by parts of a pixel (bicubic), and
    enlarged where more pixels are asked for (the motion with it). Equal frames are equal bytes.
    """
    ir, vis = asset("sentinel2_nir.png"), asset("sentinel2_visible.png")
    zoom = max(height, width) / 192
    found: tuple[list, list] = ([], [])
    for n in range(frames):
        angle = 2 * math.pi * n / _LAP
        x = 150 + _RADIUS * math.cos(angle) - width / zoom / 2
        y = 150 + _RADIUS * math.sin(angle) - height / zoom / 2
        matrix = np.float32([[zoom, 0, -zoom * x], [0, zoom, -zoom * y]])
        for frames_of, image in zip(found, (ir, vis), strict=True):
            frames_of.append(cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC))
    return found


def run(out: str | Path = "out", *, device: str | None = None, progress: bool = False) -> list:
    """Write the clip's two streams, 3 seconds each, and their fusion; the files written.

    Preset ``realtime``, embedded prior. Raises ValueError where ``out`` cannot be written,
    ImportError without PyAV.
    """
    from ..api import Fuser

    out = ensure_writable_dir(out)
    names = [out / f"pan_{name}.mp4" for name in ("ir", "vis")]
    for path, frames in zip(names, pan(_LAP), strict=True):
        sink = open_sink(path, ArraySource(frames, path.name, Fraction(RATE)), crf=8)
        for n, frame in enumerate(frames):
            sink.write(frame, Fraction(n, RATE), n)
        sink.finish()
    fused = out / "pan_fused.mp4"
    report = fuse_video(
        *names, fused, fuser=Fuser(device=device), preset="realtime", progress=progress
    )
    print(
        f"{fused}  {report.frames} frames, {report.fps:.1f} frames/s, from {names[0]} and "
        f"{names[1]}",
        file=sys.stdout,
    )
    return [*names, fused]
