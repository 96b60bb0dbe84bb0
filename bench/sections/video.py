"""Video: seconds per frame, how steady the result is, and how good.

Image presets frame by frame, and video presets, fuse the pan over the demo pair. Steadiness is
flicker and flow-warped error of ``ddfm_fast.metrics.temporal``; quality is the mean over the
frames. Video presets carry pictures from frame to frame and share a scale, so they are lossy.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ddfm_fast import Fuser
from ddfm_fast.metrics import compute, temporal, to_luma
from ddfm_fast.video import VIDEO_PRESETS, TemporalFuser, fuse_video
from ddfm_fast.video.demo import pan
from ddfm_fast.video.motion import MotionFinder

from ..data import PAIR
from ..place import Place, Task, largest_difference, named, require
from ..results import Measurement, Parity
from .loop import preset
from .throughput import side_of

ABOUT = "seconds per frame, flicker and quality, image presets frame by frame and video presets"
LIMIT = 1.0
"""gray levels between the first frame of "exact" and the image preset, by the prior's rounding"""
QUALITY = ("SCD", "VIF", "Qabf", "SSIM")
IMAGE_PRESETS, BASELINE = ("official", "balanced", "fast"), "image preset official"


def tasks(place: Place) -> list[Task]:
    """Return the engine frame by frame, and the whole command if PyAV is installed."""
    side = side_of(place)
    name = f"seconds per frame of a video, pan over the {PAIR}"
    found = [Task("video", name, named(side, side), lambda: frames(place, side))]
    try:
        import av  # noqa: F401
    except ImportError:
        return found
    name = f"seconds per frame of a file, pan over the {PAIR}"
    return [*found, Task("video", name, named(side, side), lambda: files(place, side))]


def _streams(place: Place) -> dict[str, Callable[[], Callable]]:
    """Return what opens a stream, (ir, vis) → the fused frame, by the name of its row."""
    fusers = {n: Fuser(preset=preset(place, n), device=place.device) for n in IMAGE_PRESETS}
    rows = {f"image preset {name}": lambda f=fuser: f for name, fuser in fusers.items()}
    official = fusers["official"]
    return rows | {f"video preset {n}": partial(_video, official, n) for n in VIDEO_PRESETS}


def _video(fuser: Fuser, name: str) -> Callable:
    temporal, find = TemporalFuser(fuser, name), MotionFinder()
    stream = temporal.open()
    return lambda ir, vis: temporal.fuse(stream, ir, vis, find(ir, vis))


def _endless(fuse: Callable, pairs: list) -> Callable[[], object]:
    around = itertools.cycle(pairs + pairs[-2:0:-1])
    return lambda: fuse(*next(around))


def frames(place: Place, side: int) -> Measurement:
    """Time frames that keep coming, as from a live source, motion included.

    Each call is the next frame of a clip that plays back and forth.
    """
    pairs = list(zip(*pan(3 if place.tiny else 24, side, side), strict=True))
    streams = _streams(place)
    fused = {name: list(itertools.starmap(stream(), pairs)) for name, stream in streams.items()}
    a, b = (torch.as_tensor(fused[n][0]) for n in (BASELINE, "video preset exact"))
    what = "first frame of video preset exact against the image preset, gray levels"
    check = Parity(what, largest_difference(a, b), LIMIT)
    works = {name: _endless(stream(), pairs) for name, stream in streams.items()}
    found = place.measure(works, check, baseline=BASELINE, repeats=10, clock=place.wall)
    evaluations = {f"image preset {name}": preset(place, name).steps for name in IMAGE_PRESETS}
    for name, video in VIDEO_PRESETS.items():
        config = video.config or preset(place, "official")
        evaluations[f"video preset {name}"] = config.steps
    for name, candidate in found.candidates.items():
        candidate.lossless = name == BASELINE
        candidate.quality = score(fused[name], pairs)
        candidate.about = f"{evaluations[name]} prior evaluations per frame"
    found.facts = {"frames a second": {n: 1 / c.median for n, c in found.candidates.items()}}
    return found


def score(fused: list, pairs: list) -> dict[str, float]:
    """Return a fused video's steadiness and quality, as means over the frames."""
    lumas = [[to_luma(image) for image in video] for video in (fused, *zip(*pairs, strict=True))]
    found = temporal.compute(*lumas) | compute(*map(torch.stack, lumas), names=QUALITY)
    return {name: float(found[name].mean()) for name in (*temporal.NAMES, *QUALITY)}


def files(place: Place, side: int) -> Measurement:
    """Time the whole command with decoding, encoding and cold start; one clip per call."""
    count = 3 if place.tiny else 300 if place.device.type == "cuda" else 16
    clip, fuser = pan(count, side, side), Fuser(device=place.device, preset=preset(place, "fast"))
    latency, missing = {}, {}

    def work(name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            report = fuse_video(*clip, Path(folder) / "out.mp4", fuser=fuser, preset=name)
        latency[name] = {"p50": report.latency_p50, "p99": report.latency_p99}
        missing[name] = count - report.frames

    works = {f"video preset {name}": partial(work, name) for name in ("balanced", "realtime")}
    timing = {"calls": dict.fromkeys(works, count), "repeats": 3, "clock": place.wall}
    found = place.measure(works, baseline=None, warmup=0, **timing)
    found.parity = require(Parity("frames missing in the file", max(missing.values()), 0))
    found.facts = {"latency of the last call, seconds": latency}
    return found
