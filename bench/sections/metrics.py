"""The paper's six metrics of one triple: ours and a NumPy transcription of the evaluator."""

from __future__ import annotations

import torch

from ddfm_fast.metrics import compute

from ..fidelity import METRICS
from ..metrics import baseline
from ..place import Place, Task, named
from ..results import Measurement, Parity

ABOUT = "the paper's six metrics against a NumPy transcription of the community's evaluator"
LIMIT = 1e-4
"""of each metric, relative"""


def tasks(place: Place) -> list[Task]:
    """Return one triple of the field's usual size."""
    height, width = (96, 128) if place.tiny else (480, 640)
    size = named(height, width)
    return [Task("metrics", "six metrics", size, lambda: measure(place, height, width))]


def triple(height: int, width: int) -> list:
    """Make fused, infrared, visible: seeded random texture, float32, whole gray levels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 1, height // 4, width // 4, generator=generator) * 255
    ir, vis = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[:, 0]
    fused = 0.6 * ir + 0.4 * vis + 3 * torch.randn(height, width, generator=generator)
    return [plane.clamp(0, 255).round().numpy() for plane in (fused, ir, vis)]


def measure(place: Place, height: int, width: int) -> Measurement:
    """Time both sides in turn, on the host whatever the device is."""
    images = triple(height, width)
    theirs, ours = baseline(*images), compute(*images, names=METRICS)
    worst = max(abs(float(ours[n]) - theirs[n]) / abs(theirs[n]) for n in METRICS)
    candidates = {
        "reference": lambda: baseline(*images),
        "ddfm_fast": lambda: compute(*images, names=METRICS),
        "ddfm_fast, all metrics": lambda: compute(*images),
    }
    check = Parity("six metrics, relative, ours against the reference", worst, LIMIT)
    return place.measure(candidates, check, repeats=7, clock=place.wall)
