"""Images a second over batch sizes, and frames a second of a sequence that keeps coming."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from ddfm_fast import Fuser
from ddfm_fast.video import TemporalFuser
from ddfm_fast.video.demo import pan
from ddfm_fast.video.motion import MotionFinder

from ..data import PAIR, pair
from ..place import Place, Task, largest_difference, named, require
from ..results import Measurement, Parity
from .loop import preset

ABOUT = "images a second over batch sizes, frames a second"
LIMIT = 1.0
"""grey levels: an image in a batch against the same image alone, the prior's rounding apart"""
PRESET = "fast"
VIDEO = "seconds a frame of a video, pan over the demo pair"


def tasks(place: Place) -> list[Task]:
    side = 48 if place.tiny else 128 if place.device.type == "cpu" else 256
    size = named(side, side)
    return [
        Task("throughput", name(), size, lambda: measure(place, side)),
        Task("throughput", VIDEO, size, lambda: frames(place, side)),
    ]


def name() -> str:
    return f"seconds an image, preset {PRESET}, {PAIR}"


def batches(place: Place) -> list[int]:
    if place.tiny:
        return [1, 2]
    return [1, 2, 4] if place.device.type == "cpu" else [1, 2, 4, 8, 16, 32]


def measure(place: Place, side: int) -> Measurement:
    ir, vis = pair(side)
    fusers = {n: Fuser(preset=PRESET, device=place.device, batch_size=n) for n in batches(place)}
    alone = torch.from_numpy(fusers[1](ir, vis))
    checks = [
        Parity(
            f"an image in a batch of {n} against the same alone, grey levels",
            max(largest_difference(alone, torch.from_numpy(y)) for y in fuser([ir] * n, [vis] * n)),
            LIMIT,
        )
        for n, fuser in fusers.items()
    ]
    found = Measurement("throughput", name(), named(side, side), place.command("throughput"))
    found.parity, found.baseline = require(*checks), "batch of 1"
    candidates = {
        f"batch of {n}": (lambda f=fuser, n=n: f([ir] * n, [vis] * n))
        for n, fuser in fusers.items()
    }
    calls = {f"batch of {n}": n for n in fusers}
    found.candidates = place.times(candidates, calls=calls, repeats=8, clock=place.wall)
    found.facts = {
        "images a second": {n: 1 / c.median for n, c in found.candidates.items()},
        "note": "each sample: a call's seconds over its images",
    }
    return found


def frames(place: Place, side: int) -> Measurement:
    """Frames that keep coming, as a live source gives them: each video preset, motion included.

    Each call is the next frame of a clip that goes to and fro; the default image preset frame by
    frame is the baseline. Video presets carry pictures over: lossy, see ``bench.video``.
    """
    count = 2 if place.tiny else 12
    clip = list(zip(*pan(count, side, side), strict=True))
    fuser = Fuser(device=place.device, preset=preset(place, "official"))
    check = _first_frame(fuser, clip[0])
    found = Measurement("throughput", VIDEO, named(side, side), place.command("throughput"))
    found.parity, found.baseline = require(check), "image preset official"
    candidates = {found.baseline: _endless(lambda ir, vis: fuser(ir, vis), clip)}
    for name in ("balanced", "realtime"):
        candidates[f"video preset {name}"] = _endless(_video(fuser, name), clip)
    found.candidates = place.times(candidates, repeats=10, clock=place.wall)
    for name, candidate in found.candidates.items():
        candidate.lossless = name == found.baseline
    found.facts = {"frames a second": {n: 1 / c.median for n, c in found.candidates.items()}}
    return found


def _endless(fuse: Callable, clip: list[tuple]) -> Callable[[], object]:
    around = itertools.cycle(clip + clip[-2:0:-1])
    return lambda: fuse(*next(around))


def _video(fuser: Fuser, name: str) -> Callable:
    engine, find = TemporalFuser(fuser, name), MotionFinder()
    stream = engine.open()
    return lambda ir, vis: engine.fuse(stream, ir, vis, find(ir, vis))


def _first_frame(fuser: Fuser, frame: tuple) -> Parity:
    """The video preset that promises the image preset's pictures gives its first one."""
    a, b = _video(fuser, "exact")(*frame), fuser(*frame)
    worst = largest_difference(torch.from_numpy(a), torch.from_numpy(b))
    return Parity("first frame of video preset exact against the image preset", worst, LIMIT)
