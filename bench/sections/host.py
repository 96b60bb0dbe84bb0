"""The host's share of a call: what a call takes beyond the time in which the GPU works for it.

PyTorch's profiler sees when each kernel and copy runs, those of a replayed graph too, and which
calls of the CUDA runtime the host makes for them. Overlapping work counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch

from ddfm_fast import PRESETS, Fuser

from ..place import Place, Task, largest_difference, named
from ..results import Candidate, Measurement, Parity

ABOUT = "the host's share of a call, by the profiler"
NAMES = ("fast", "balanced", "official")
SIGMA = 12
"""gray levels of noise in the sources, so that the presets that denoise do so"""
LIMIT = 1.0
"""gray levels between a replayed and an eager call: the same kernels, and a rounding to uint8"""
PROFILED = 5
"""calls that are profiled, one at a time"""


def tasks(place: Place) -> list[Task]:
    """Return whole calls from uint8 to uint8 arrays, by preset; nothing on a CPU."""
    size = (16, 32) if place.rehearse else (64, 80) if place.quick else (512, 640)
    names = NAMES if place.device.type == "cuda" else NAMES[:1] if place.on_gpu else ()
    return [
        Task("host", f"a call, preset {name}", named(*size), partial(measure, place, name, size))
        for name in names
    ]


def sources(size: tuple[int, int]) -> list[np.ndarray]:
    """Make smooth noisy sources, seeded: infrared [H, W] and visible [H, W, 3], uint8."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]] / 40
    found = []
    for shape in (size, (*size, 3)):
        smooth = 127 + 60 * np.sin(x + random.random()) + 60 * np.cos(y * (1 + random.random()))
        smooth = smooth.reshape(*size, *[1] * (len(shape) - 2))
        found.append(np.clip(random.normal(smooth, SIGMA, shape), 0, 255).astype(np.uint8))
    return found


def measure(place: Place, name: str, size: tuple[int, int]) -> Measurement:
    """Time a call by the host's clock, and the GPU's busy time in calls like it."""
    images, config = sources(size), PRESETS[name]
    steps = min(config.steps, 3) if place.tiny else config.steps
    modes = {"graph": "loop"} if place.device.type == "cuda" else {"backend": "triton"}
    eager, fuser = (
        Fuser(preset=config.with_overrides(steps=steps), device=place.device, **chosen)
        for chosen in ({**modes, "graph": "off"}, modes)
    )
    call = partial(fuser, *images)
    call()  # eagerly; the next call is captured
    apart = largest_difference(*(torch.as_tensor(f).float() for f in (eager(*images), call())))
    check = Parity("a replayed call against an eager one, gray levels", apart, LIMIT)
    found = place.measure({"call": call}, check, baseline="call", clock=place.wall)
    found.facts = {"steps": steps, "precision": fuser.prior.precision}
    if place.device.type == "cuda":
        busy, counts = profiled(call, 1 if place.tiny else PROFILED)
        found.facts |= counts
        if any(busy):
            found.candidates["GPU busy"] = Candidate(busy)
            share = 1 - found.candidates["GPU busy"].median / found.candidates["call"].median
            found.facts["host's share"] = share
        else:
            found.facts["profiler"] = "saw no work of the GPU"
    return found


def profiled(call: Callable[[], object], calls: int) -> tuple[list[float], dict]:
    """Return the GPU's busy seconds in each of some calls, and counts of the last."""
    from torch.profiler import ProfilerActivity, profile

    seconds, counts = [], {}
    for _ in range(calls):
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            call()
            torch.cuda.synchronize()
        events = profiler.events()
        on_gpu = [e for e in events if e.device_type.name == "CUDA"]
        seconds.append(union((e.time_range.start, e.time_range.end) for e in on_gpu) / 1e6)
        asked = Counter(e.name for e in events if e.name.startswith("cu") and e not in on_gpu)
        counts = {"kernels and copies": len(on_gpu), "calls of the CUDA runtime": dict(asked)}
    return seconds, counts


def union(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length that the spans cover."""
    covered, end = 0.0, -float("inf")
    for start, stop in sorted(spans):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered
