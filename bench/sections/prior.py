"""A forward of the prior: the authors' module against our engine, the same weights in both."""

from __future__ import annotations

import torch
from torch import Tensor

from ddfm_fast.priors import Prior, load_prior

from ..cost import forward_flops
from ..data import network, reference_unet
from ..place import Place, Task, largest_difference, named, require
from ..results import Measurement, Parity

ABOUT = "a forward of the prior"
LIMIT = 2e-4
"""of eps, over its largest value: float32 on both sides, rounded in another order"""
TIMESTEP = 500


def tasks(place: Place) -> list[Task]:
    return [
        Task("prior", name, named(*size), lambda n=name, s=size: measure(place, n, *s))
        for name, sizes in wanted(place).items()
        for size in sizes
    ]


def wanted(place: Place) -> dict[str, list[tuple[int, int]]]:
    """Sizes by network; the small ADM's attention makes large ones slow for the reference."""
    if place.size:
        return {"embedded": [place.size], "small ADM": [place.size]}
    if place.tiny:
        return {"embedded": [(32, 48)], "small ADM": [(32, 48)]}
    if place.on_gpu:
        sizes = [(256, 256), (512, 640), (1088, 1920)]
        return {"embedded": sizes, "small ADM": sizes[:2]}
    return {"embedded": [(64, 64), (256, 320), (512, 640)], "small ADM": [(64, 64), (256, 320)]}


def noise(height: int, width: int, device: torch.device, count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, height, width, generator=generator).to(device)


def forward(prior: Prior, x: Tensor):
    """A call of ``eps`` at one timestep."""
    step = prior.conditioning(torch.tensor([TIMESTEP]))[0]
    return lambda: prior.eps(x, step)


def measure(place: Place, name: str, height: int, width: int) -> Measurement:
    theirs = reference_unet(name, place.device)
    multiple = network(name).config.multiple
    height, width = (-(-n // multiple) * multiple for n in (height, width))
    x, t = noise(height, width, place.device), torch.tensor([TIMESTEP], device=place.device)
    candidates = {"reference": lambda: theirs(x, t)}
    exact = theirs(x, t)[:, :3]
    scale = max(1.0, float(exact.abs().max()))
    ours = forward(load_prior(network(name), device=place.device), x)
    worst = largest_difference(exact, ours()) / scale
    parity = require(Parity(f"{name} prior, ours against the reference", worst, LIMIT))
    candidates["ddfm_fast"] = ours
    size = named(height, width)
    found = Measurement("prior", name, size, place.command("prior", size), "reference", parity)
    found.candidates = place.times(candidates, repeats=12)
    flops = forward_flops(network(name).config, height, width)
    found.candidates["ddfm_fast"].floor = place.floor(0, flops)
    found.facts = {"operations": flops}
    return found
