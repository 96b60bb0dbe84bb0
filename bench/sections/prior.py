"""A forward of the prior: the authors' module against our engine, the same weights in both."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.precision import cpu_has, float32_products
from ddfm_fast.priors.prior import Prior

from ..data import network, reference_unet
from ..model import forward_cost
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
    with float32_products(tf32=False):  # PyTorch's own default rounds a GPU's convolutions
        exact = theirs(x, t)[:, :3].clone()
    scale = max(1.0, float(exact.abs().max()))
    works = ours(place, name, x)
    errors = {p: largest_difference(exact, work()) / scale for p, work in works.items()}
    check = Parity(f"{name} prior, ours against the reference", errors["float32"], LIMIT)
    parity = require(check)
    names = {p: "ddfm_fast" if p == "float32" else f"ddfm_fast, {p}" for p in works}
    candidates |= {names[p]: work for p, work in works.items()}
    size = named(height, width)
    found = Measurement("prior", name, size, place.command("prior", size), "reference", parity)
    found.candidates = place.times(candidates, repeats=12)
    for precision, path in names.items():
        half = precision in ("float16", "bfloat16")
        cost = forward_cost(name, height, width, half=half, fused=place.device.type == "cuda")
        candidate = found.candidates[path]
        candidate.floor = place.floor(cost.bytes, cost.flops, precision)
        candidate.lossless = precision == "float32"
        candidate.quality = {"largest error of eps": errors[precision]}
    cost = forward_cost(name, height, width)
    found.facts = {"operations": cost.flops, "bytes": cost.bytes, "launches": len(cost.launches)}
    return found


def ours(place: Place, name: str, x: Tensor) -> dict[str, Callable]:
    """A forward by each precision that the device multiplies in; in a graph on a GPU."""
    found = {}
    for precision in ("float32", "bfloat16", "float16"):
        if place.device.type == "cpu" and not cpu_has(getattr(torch, precision)):
            continue
        prior = load_prior(network(name), device=place.device, dtype=precision)
        found[precision] = place.captured(forward(prior, x))
    return found
