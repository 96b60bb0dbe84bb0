"""Images a second over batch sizes, and frames a second of a sequence that keeps coming."""

from __future__ import annotations

from ddfm_fast import Fuser

from ..data import PAIR, pair
from ..place import Place, Task, largest_difference, named, require
from ..results import Measurement, Parity

ABOUT = "images a second over batch sizes, frames a second"
LIMIT = 1.0
"""grey levels: an image in a batch against the same image alone, the prior's rounding apart"""
PRESET = "fast"


def tasks(place: Place) -> list[Task]:
    side = 48 if place.tiny else 128 if place.device.type == "cpu" else 256
    size = named(side, side)
    return [Task("throughput", name(), size, lambda: measure(place, side))]


def name() -> str:
    return f"seconds an image, preset {PRESET}, {PAIR}"


def batches(place: Place) -> list[int]:
    if place.tiny:
        return [1, 2]
    return [1, 2, 4] if place.device.type == "cpu" else [1, 2, 4, 8, 16, 32]


def measure(place: Place, side: int) -> Measurement:
    import torch

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
        "note": "each sample: a call's seconds over its images; a stream of frames is batch 1",
    }
    return found
