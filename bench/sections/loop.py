"""Whole fusions of the demo pair by every preset, compared with the authors' loop.

Presets other than the authors' own give other pictures in fewer steps: a lossy speed-up, with its
scores beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddfm_fast import PRESETS, Fuser
from ddfm_fast.config import FuseConfig
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.precision import float32_products
from ddfm_fast.sampler import sample
from ddfm_fast.schedule import make_schedule

from ..data import PAIR, pair, pair_lumas, reference_unet
from ..fidelity import scores
from ..place import Place, Task, largest_difference, named
from ..reference import ReferenceLoop
from ..results import Measurement, Parity

ABOUT = "whole fusions, every preset"
LIMIT = 1e-3
"""of x_0 in about [−1, 1] after all steps: the limit for the authors' own tensors, too"""
FEW = 5
"""steps of the long presets in a quick look"""


def tasks(place: Place) -> list[Task]:
    """Return all presets on the demo pair."""
    side = side_of(place)
    name = f"whole fusion, {PAIR}, embedded prior"
    return [Task("loop", name, named(side, side), lambda: measure(place, side))]


def side_of(place: Place) -> int:
    """Height and width of the crop that is fused."""
    return 64 if place.tiny else 192


def preset(place: Place, name: str) -> FuseConfig:
    """Return the preset, with few steps in a quick look."""
    config = PRESETS[name]
    return config.with_overrides(steps=min(config.steps, FEW)) if place.tiny else config


def start(side: int, device: torch.device, seed: int = 3407) -> Tensor:
    """Draw x_T as ``sample`` does."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, side, side, generator=generator).to(device)


def reference_fusion(place: Place, side: int, steps: int):
    """Return the authors' loop with their form of the embedded prior: () → x_0."""
    unet, (i, v) = reference_unet("embedded", place.device), pair_lumas(side, place.device)
    schedule, x = make_schedule(steps), start(side, place.device)
    loop = ReferenceLoop(schedule.timesteps, schedule.betas)
    return lambda: loop(unet, x, i, v)


def parity(place: Place, side: int, steps: int) -> Parity:
    """Compare our whole loop, by the official preset, with the authors'."""
    prior = load_prior("embedded", device=place.device, dtype="float32")
    with float32_products(tf32=False):  # PyTorch's own default rounds a GPU's convolutions
        theirs = reference_fusion(place, side, steps)()
        ours = sample(prior, *pair_lumas(side, place.device), FuseConfig(steps=steps)).x0
    worst = largest_difference(theirs, ours)
    return Parity("whole loop, ours against the reference", worst, LIMIT)


def modes(place: Place) -> dict[str, dict]:
    """Return the ways to run a preset: end of a candidate's name → arguments of ``Fuser``."""
    if place.device.type != "cuda":
        return {"": {"graph": "off", **({"backend": "triton"} if place.rehearse else {})}}
    return {", eager": {"graph": "off"}, ", graph": {"graph": "loop"}}


def measure(place: Place, side: int) -> Measurement:
    """Time every preset in every mode, and score its picture."""
    steps, (ir, vis) = preset(place, "official").steps, pair(side)
    check = parity(place, side, steps)
    fusers, candidates = {}, {"reference": reference_fusion(place, side, steps)}
    for name in PRESETS:
        for ending, arguments in modes(place).items():
            fuser = Fuser(preset=preset(place, name), device=place.device, **arguments)
            if place.device.type == "cuda":
                fuser.warmup([(side, side)])
            fusers[name + ending] = fuser
            candidates[name + ending] = lambda f=fuser: f(ir, vis)
    found = place.measure(candidates, check, repeats=5, warmup=0, clock=place.wall)
    found.candidates["reference"].lossless = True
    found.candidates["reference"].about = f"{steps} steps"
    for path, fuser in fusers.items():
        candidate, name = found.candidates[path], path.split(",")[0]
        precision = fuser.prior.precision
        candidate.quality = scores(fuser(ir, vis), ir, vis)
        if name != "official-script":  # the same mathematics on other input
            candidate.lossless = name == "official" and precision == "float32"
        variant, evaluations = fuser.config.variant, fuser.config.steps
        candidate.about = f"variant {variant}, {evaluations} prior evaluations in {precision}"
    found.facts = {"steps": {n: f.config.steps for n, f in fusers.items()}}
    found.facts |= {"graphs": {n: f.loops.summary() for n, f in fusers.items() if len(f.loops)}}
    return found
