"""How the cost grows with pixels, images, steps and threads; exponents by least squares."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from ddfm_fast import PRESETS, Fuser
from ddfm_fast.priors.load import load_prior
from ddfm_fast.runtime.machine import usable_cores

from ..data import pair, planes
from ..place import Place, Task, largest_difference, named
from ..results import FEWEST_SIZES, Measurement, Parity
from . import loop, prior, step

ABOUT = "cost against pixels (64x64 to 2160x3840), batch, steps and threads: fitted exponents"
STEP_SIZES = [(64, 64), (128, 128), (256, 256), (512, 640), (1088, 1920), (2160, 3840)]
PRIOR_SIZES = [(64, 64), (96, 96), (128, 128), (256, 256), (256, 512), (512, 640)]
BATCHES, STEPS = [1, 2, 3, 4, 6, 8], [2, 3, 4, 8, 16, 32]
SIDE = 64


def tasks(place: Place) -> list[Task]:
    """Return each part of a fusion with what it grows with."""
    few = slice(2) if place.quick else slice(1) if place.rehearse else slice(None)
    one = f"{SIDE}x{SIDE}"

    instant = partial(_call, preset="instant", denoise="off")

    def task(name: str, work: Callable, values: list, size: str = "") -> Task:
        size = size or f"{named(*values[0])} to {named(*values[-1])}"
        return Task("scaling", name, size, partial(work, place, values))

    return [
        task("step after the prior against pixels", step_pixels, STEP_SIZES[few]),
        task("forward of the prior against pixels", prior_pixels, PRIOR_SIZES[few]),
        task("whole fusion against pixels, preset fast", loop_pixels, PRIOR_SIZES[few]),
        task("forward of the prior against batch", prior_batch, BATCHES[few], one),
        task("whole fusion against steps", loop_steps, STEPS[few], one),
    ] + [
        Task("scaling", f"{name}: threads", named(*side), partial(threads, place, side, work))
        for name, work in (("forward of the prior", _forward), ("preset instant", instant))
        for side in PRIOR_SIZES[few][-1:]
        if place.device.type == "cpu" and not place.rehearse
    ]


def fit(x: list[float], seconds: list[float]) -> dict[str, float]:
    """Fit seconds ≈ factor · x^exponent by least squares on the logarithms; r² says how well.

    Returns {} for fewer points than `FEWEST_SIZES`: a line through two says nothing.
    """
    if len(x) < FEWEST_SIZES:
        return {}
    logs = np.log(np.array([x, seconds], float))
    exponent, factor = np.polyfit(*logs, 1)
    residual = logs[1] - np.polyval([exponent, factor], logs[0])
    spread = float(((logs[1] - logs[1].mean()) ** 2).sum())
    return {
        "exponent": float(exponent),
        "factor": float(np.exp(factor)),
        "r2": 1 - float((residual**2).sum()) / spread if spread else 1.0,
    }


Works = dict[str, tuple[float, Callable[[], object]]]
"""label → (the quantity with which the cost grows, the work)"""


def _fitted(place: Place, against: str, works: Works, check: Parity, **timing) -> Measurement:
    candidates = {label: work for label, (_, work) in works.items()}
    found = place.measure(candidates, check, baseline=None, **timing)
    groups: dict[str, dict[str, float]] = {}
    for label, (x, _) in works.items():
        groups.setdefault(label.split(", ")[0], {})[label] = x
    found.facts = {
        "against": against,
        "x": {label: x for label, (x, _) in works.items()},
        "fits": {
            group: fit(list(xs.values()), [found.candidates[n].median for n in xs])
            for group, xs in groups.items()
        },
    }
    return found


def step_pixels(place: Place, sizes: list[tuple[int, int]]) -> Measurement:
    """Time everything after the prior, ours and theirs."""
    works: Works = {}
    for size in sizes:
        data, pixels = planes(*size, place.device), size[0] * size[1]
        on_gpu = place.device.type == "cuda"
        ours = place.replay(step.kernel_step("torch", *data)) if on_gpu else step.twin_step(*data)
        works[f"ddfm_fast, {named(*size)}"] = pixels, ours
        if not on_gpu or pixels <= step.REFERENCE_PIXELS:
            works[f"reference, {named(*size)}"] = pixels, step.reference_step(*data)
    check = step.parity_of_twin(*sizes[0], place.device)
    return _fitted(place, "pixels", works, check, repeats=7)


def _forward(place: Place, *shape: int) -> Callable[[], torch.Tensor]:
    ours = load_prior("embedded", device=place.device, dtype="float32")
    height, width, *count = shape
    return prior.forward(ours, prior.noise(height, width, place.device, *count))


def prior_pixels(place: Place, sizes: list[tuple[int, int]]) -> Measurement:
    """Time a forward of the embedded prior."""
    works: Works = {
        f"ddfm_fast, {named(*size)}": (size[0] * size[1], _forward(place, *size)) for size in sizes
    }
    check = prior.parity("embedded", place, *sizes[0])
    return _fitted(place, "pixels", works, check, repeats=7)


def _call(place: Place, *size: int, **options) -> Callable[[], torch.Tensor]:
    fuser = Fuser(device=place.device, **options)
    return partial(fuser, *((p[0, 0] + 1) / 2 for p in planes(*size, place.device)[:2]))


def loop_pixels(place: Place, sizes: list[tuple[int, int]]) -> Measurement:
    """Time whole fusions by preset fast, both sources denoised: two evaluations."""
    work = partial(_call, place, preset="fast", denoise=20, graph="off")
    works = {f"ddfm_fast, {named(*size)}": (size[0] * size[1], work(*size)) for size in sizes}
    check = prior.parity("embedded", place, *sizes[0])
    return _fitted(place, "pixels", works, check, repeats=5, clock=place.wall)


def prior_batch(place: Place, counts: list[int]) -> Measurement:
    """Time a forward of several images."""
    works: Works = {f"ddfm_fast, {n} images": (n, _forward(place, SIDE, SIDE, n)) for n in counts}
    check = prior.parity("embedded", place, SIDE, SIDE)
    return _fitted(place, "images", works, check, repeats=10)


def loop_steps(place: Place, counts: list[int]) -> Measurement:
    """Time whole fusions of the demo pair in more or fewer steps."""
    works: Works = {}
    for n in counts:
        config = PRESETS["official"].with_overrides(steps=n)
        fuser = Fuser(preset=config, device=place.device, graph="off")
        works[f"ddfm_fast, {n} steps"] = n, partial(fuser, *pair(SIDE))
    check = loop.parity(place, SIDE, counts[0])
    return _fitted(place, "steps", works, check, repeats=7, clock=place.wall)


def threads(place: Place, size: tuple[int, int], work: Callable) -> Measurement:
    """Time work, with equal bytes, on 1, 2, 3 threads, as many as cores, and one more."""
    run, before = work(place, *size), torch.get_num_threads()
    counts = sorted({1, 2, 3, usable_cores(), usable_cores() + 1})

    def on(count: int) -> torch.Tensor:
        torch.set_num_threads(count)
        return run()

    try:
        gaps = {f"{n} threads and 1": largest_difference(on(1).clone(), on(n)) for n in counts}
        works = {f"{n} threads": partial(on, n) for n in counts}
        checks = [Parity(what, gap, 0) for what, gap in gaps.items()]
        return place.measure(works, *checks, baseline="1 threads", clock=place.wall)
    finally:
        torch.set_num_threads(before)
