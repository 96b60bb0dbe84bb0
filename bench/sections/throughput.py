"""Images per second over batch sizes."""

from __future__ import annotations

import torch

from ddfm_fast import Fuser

from ..data import PAIR, pair
from ..place import Place, Task, largest_difference, named
from ..results import Measurement, Parity

ABOUT = "images per second over batch sizes"
LIMIT = 1.0
"""gray levels between an image in a batch and alone, due to the prior's rounding"""
PRESET = "fast"


def tasks(place: Place) -> list[Task]:
    """Return one preset, several batch sizes."""
    side = side_of(place)
    name = f"seconds an image, preset {PRESET}, {PAIR}"
    return [Task("throughput", name, named(side, side), lambda: measure(place, side))]


def side_of(place: Place) -> int:
    """Return the height and width of an image."""
    return 48 if place.tiny else 128 if place.device.type == "cpu" else 256


def measure(place: Place, side: int) -> Measurement:
    """Time calls of n images; each sample is a call's seconds over its images."""
    counts = [1, 2] if place.tiny else [1, 2, 4]
    counts += [8, 16, 32] if place.device.type == "cuda" else []
    (ir, vis), works, calls, checks, alone = pair(side), {}, {}, [], None
    for n in counts:
        fuser = Fuser(preset=PRESET, device=place.device, batch_size=n)
        name, call = f"batch of {n}", lambda f=fuser, n=n: f([ir] * n, [vis] * n)
        works[name], calls[name] = call, n
        fused = torch.stack([torch.as_tensor(image) for image in call()])
        alone = fused if alone is None else alone
        worst = largest_difference(alone, fused)
        what = f"an image in a {name} against the same alone, gray levels"
        checks.append(Parity(what, worst, LIMIT))
    found = place.measure(
        works, *checks, baseline="batch of 1", calls=calls, repeats=8, clock=place.wall
    )
    found.facts = {"images a second": {n: 1 / c.median for n, c in found.candidates.items()}}
    return found
