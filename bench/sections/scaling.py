"""What the cost grows with: pixels, images, steps. Exponents by least squares on logarithms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ddfm_fast import PRESETS, Fuser
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.precision import float32_products

from ..data import network, pair, planes, reference_unet
from ..place import Place, Task, largest_difference, named, require
from ..results import Measurement, Parity
from . import loop, prior, step

ABOUT = "cost against pixels (64x64 to 2160x3840), batch and steps: fitted exponents"
STEP_SIZES = [(64, 64), (128, 128), (256, 256), (512, 640), (1088, 1920), (2160, 3840)]
PRIOR_SIZES = [(64, 64), (128, 128), (256, 256), (512, 640)]
BATCHES, STEPS = [1, 2, 4, 8], [2, 4, 8, 16, 32]
STEPS_SIDE = 64


def tasks(place: Place) -> list[Task]:
    few = slice(2) if place.quick else slice(1) if place.rehearse else slice(None)
    steps, priors = STEP_SIZES[few], PRIOR_SIZES[few]
    span = f"{named(*steps[0])} to {named(*steps[-1])}"
    prior_span = f"{named(*priors[0])} to {named(*priors[-1])}"
    side = named(STEPS_SIDE, STEPS_SIDE)
    return [
        Task("scaling", "step after the prior against pixels", span,
             lambda: step_pixels(place, steps, span)),
        Task("scaling", "forward of the prior against pixels", prior_span,
             lambda: prior_pixels(place, priors, prior_span)),
        Task("scaling", "whole fusion against pixels, preset fast", prior_span,
             lambda: loop_pixels(place, priors, prior_span)),
        Task("scaling", "forward of the prior against batch", side,
             lambda: prior_batch(place, BATCHES[few], side)),
        Task("scaling", "whole fusion against steps", side,
             lambda: loop_steps(place, STEPS[few], side)),
    ]  # fmt: skip


def fit(x: list[float], seconds: list[float]) -> dict[str, float]:
    """seconds ≈ factor · x^exponent by least squares on the logarithms; r² tells how well.

    ``exponent_above``: over the upper half of x alone, where overheads weigh less.
    """
    if len(x) < 2:
        return {}
    logs = np.log(np.array([x, seconds], float))
    exponent, factor = np.polyfit(*logs, 1)
    residual = logs[1] - np.polyval([exponent, factor], logs[0])
    spread = float(((logs[1] - logs[1].mean()) ** 2).sum())
    upper = logs[:, len(x) // 2 - (len(x) < 4) :]
    return {
        "exponent": float(exponent),
        "factor": float(np.exp(factor)),
        "r2": 1 - float((residual**2).sum()) / spread if spread else 1.0,
        "exponent_above": float(np.polyfit(*upper, 1)[0]),
    }


def _measure(
    place: Place,
    name: str,
    size: str,
    against: str,
    works: dict[str, tuple[float, Callable]],
    checks: list[Parity],
    **options,
) -> Measurement:
    """``works``: label → (what the cost is fitted against, the work)."""
    found = Measurement("scaling", name, size, place.command("scaling"), None, require(*checks))
    found.candidates = place.times({n: w for n, (_, w) in works.items()}, **options)
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


def step_pixels(place: Place, sizes: list[tuple[int, int]], span: str) -> Measurement:
    checks = [step.parity_of_twin(*sizes[0], place.device)]
    works: dict[str, tuple[float, Callable]] = {}
    for size in sizes:
        data, pixels = planes(*size, place.device), size[0] * size[1]
        works[f"ddfm_fast, {named(*size)}"] = pixels, _ours_step(place, data)
        if place.device.type == "cpu" or pixels <= step.REFERENCE_PIXELS:
            works[f"reference, {named(*size)}"] = pixels, step.reference_step(*data)
    name = "step after the prior against pixels"
    return _measure(place, name, span, "pixels", works, checks, repeats=7)


def _ours_step(place: Place, data) -> Callable:
    if place.device.type == "cuda":
        return place.replay(step.kernel_step("torch", *data))
    return step.twin_step(*data)


def prior_pixels(place: Place, sizes: list[tuple[int, int]], span: str) -> Measurement:
    ours = load_prior("embedded", device=place.device, dtype="float32")
    check = _prior_check(place, *sizes[0])
    works = {
        f"ddfm_fast, {named(*size)}": (
            size[0] * size[1],
            prior.forward(ours, prior.noise(*size, place.device)),
        )
        for size in sizes
    }
    name = "forward of the prior against pixels"
    return _measure(place, name, span, "pixels", works, [check], repeats=7)


def _prior_check(place: Place, height: int, width: int) -> Parity:
    import torch

    x, t = prior.noise(height, width, place.device), torch.tensor([prior.TIMESTEP])
    with float32_products(tf32=False):
        exact = reference_unet("embedded", place.device)(x, t.to(place.device))
    worst = largest_difference(
        exact,
        prior.forward(load_prior(network("embedded"), device=place.device, dtype="float32"), x)(),
    )
    scale = max(1.0, float(exact.abs().max()))
    return Parity("embedded prior, ours against the reference", worst / scale, prior.LIMIT)


def loop_pixels(place: Place, sizes: list[tuple[int, int]], span: str) -> Measurement:
    import torch

    fuser = Fuser(preset="fast", device=place.device, graph="off")
    generator, works = torch.Generator().manual_seed(0), {}
    for size in sizes:
        ir, vis = torch.rand(2, *size, generator=generator).to(place.device)
        works[f"ddfm_fast, {named(*size)}"] = size[0] * size[1], lambda a=ir, b=vis: fuser(a, b)
    name = "whole fusion against pixels, preset fast"
    checks = [_prior_check(place, *sizes[0])]
    return _measure(place, name, span, "pixels", works, checks, repeats=5, clock=place.wall)


def prior_batch(place: Place, counts: list[int], size: str) -> Measurement:
    ours = load_prior("embedded", device=place.device, dtype="float32")
    side = STEPS_SIDE
    works = {
        f"ddfm_fast, {n} images": (n, prior.forward(ours, prior.noise(side, side, place.device, n)))
        for n in counts
    }
    name, checks = "forward of the prior against batch", [_prior_check(place, side, side)]
    return _measure(place, name, size, "images", works, checks, repeats=10)


def loop_steps(place: Place, counts: list[int], size: str) -> Measurement:
    ir, vis = pair(STEPS_SIDE)
    works = {}
    for n in counts:
        config = PRESETS["official"].with_overrides(steps=n)
        fuser = Fuser(preset=config, device=place.device, graph="off")
        works[f"ddfm_fast, {n} steps"] = n, lambda f=fuser: f(ir, vis)
    with float32_products(tf32=False):
        theirs = loop.reference_fusion(place, STEPS_SIDE, counts[0])()
    worst = largest_difference(theirs, loop.our_fusion(place, STEPS_SIDE, counts[0])())
    checks = [Parity("whole loop, ours against the reference", worst, loop.LIMIT)]
    name = "whole fusion against steps"
    return _measure(place, name, size, "steps", works, checks, repeats=7, clock=place.wall)
