"""A forward of the prior: the authors' module and our engine, with the same weights in both."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.precision import PRECISIONS, cpu_has, float32_products
from ddfm_fast.priors.prior import Prior

from ..data import config_of, network, reference_unet
from ..model import forward_cost
from ..place import Place, Task, apart, named
from ..results import Measurement, Parity

ABOUT = "a forward of the prior"
LIMIT = 2e-4
"""error of eps over its largest value: float32 on both sides, rounded in another order"""
TIMESTEP = 500
COMPILED = "float16"
"""the default on a GPU"""
COMPILED_LIMIT = 2e-2
"""error of eps over its largest value between two ways of rounding to float16, as in
``official``"""


def tasks(place: Place) -> list[Task]:
    """Return each network at each of its sizes, rounded up to its multiple."""
    found = []
    for name, sizes in wanted(place).items():
        multiple = config_of(name).multiple
        for size in sizes:
            height, width = (-(-n // multiple) * multiple for n in size)
            work = partial(measure, place, name, height, width)
            found.append(Task("prior", name, named(height, width), work))
    if place.on_gpu and not place.size:  # last, since it compiles for minutes
        size = (32, 48) if place.tiny else (512, 640)
        name = f"embedded by torch.compile, {COMPILED}"
        found.append(Task("prior", name, named(*size), partial(compiled, place, *size)))
    return found


def wanted(place: Place) -> dict[str, list[tuple[int, int]]]:
    """Return sizes by network; with the small ADM's attention, large ones are slow to compare."""
    if place.size:
        return {"embedded": [place.size], "small ADM": [place.size]}
    if place.tiny:
        return {"embedded": [(32, 48)], "small ADM": [(32, 48)]}
    if place.on_gpu:
        sizes = [(256, 256), (512, 640), (1088, 1920)]
        return {"embedded": sizes, "small ADM": sizes[:2]}
    return {"embedded": [(64, 64), (256, 320), (512, 640)], "small ADM": [(64, 64), (256, 320)]}


def noise(height: int, width: int, device: torch.device, count: int = 1) -> Tensor:
    """Draw x_t [count, 3, height, width], seeded."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, height, width, generator=generator).to(device)


def forward(prior: Prior, x: Tensor) -> Callable[[], Tensor]:
    """Return a call of ``eps`` at one timestep."""
    step = prior.conditioning(torch.tensor([TIMESTEP]))[0]
    return lambda: prior.eps(x, step)


def reference_forward(name: str, x: Tensor) -> tuple[Callable[[], Tensor], Tensor]:
    """Return the authors' module as a call, and its eps without TF32, the standard for ours."""
    module, t = reference_unet(name, x.device), torch.full((len(x),), TIMESTEP, device=x.device)
    with float32_products(tf32=False):  # PyTorch's own default rounds a GPU's convolutions
        exact = module(x, t)[:, :3].clone()
    return lambda: module(x, t), exact


def parity(name: str, place: Place, height: int, width: int) -> Parity:
    """Compare our float32 forward with the authors' module."""
    x = noise(height, width, place.device)
    ours = load_prior(network(name, place.device), device=place.device, dtype="float32")
    worst = apart(reference_forward(name, x)[1], forward(ours, x)())
    return Parity(f"{name} prior, ours against the reference", worst, LIMIT)


def measure(place: Place, name: str, height: int, width: int) -> Measurement:
    """Time every precision in which the device multiplies, in graphs on a GPU, and the module."""
    x = noise(height, width, place.device)
    theirs, exact = reference_forward(name, x)
    works, errors, floors = {"reference": theirs}, {}, {}
    for precision in ("float32", "bfloat16", "float16"):
        if place.device.type == "cpu" and not _is_tried(name, precision):
            continue
        path = "ddfm_fast" if precision == "float32" else f"ddfm_fast, {precision}"
        prior = load_prior(network(name, place.device), device=place.device, dtype=precision)
        works[path] = place.captured(forward(prior, x))
        errors[path] = apart(exact, works[path]())
        half, fused = precision != "float32", place.device.type == "cuda"
        cost = forward_cost(name, height, width, half=half, fused=fused)
        floors[path] = place.floor(cost.bytes, cost.flops, precision)
    check = Parity(f"{name} prior, ours against the reference", errors["ddfm_fast"], LIMIT)
    found = place.measure(works, check, floors=floors, repeats=12)
    for path, worst in errors.items():
        found.candidates[path].lossless = path == "ddfm_fast"
        found.candidates[path].quality = {"largest error of eps": worst}
    cost = forward_cost(name, height, width)
    found.facts = {"operations": cost.flops, "bytes": cost.bytes, "launches": len(cost.launches)}
    return found


def _is_tried(name: str, precision: str) -> bool:
    """Return whether a CPU measures it; bfloat16 of the embedded prior even if it is slow."""
    return cpu_has(getattr(torch, precision)) or (name, precision) == ("embedded", "bfloat16")


def compiled(place: Place, height: int, width: int) -> Measurement:
    """Time torch.compile of the plain embedded network, in the same dtype and layout."""
    prior = load_prior("embedded", device=place.device, dtype=COMPILED)
    return against_compile(place, prior, noise(height, width, place.device), COMPILED_LIMIT)


def against_compile(place: Place, prior, x: Tensor, limit: float) -> Measurement:
    """Time a forward and torch.compile(mode="max-autotune") of the plain network in its dtype."""
    step = prior.conditioning(torch.tensor([TIMESTEP]))[0]
    low = x.to(PRECISIONS[prior.precision], memory_format=torch.channels_last)
    options = {"backend": "eager"} if place.rehearse else {"mode": "max-autotune"}
    started = time.monotonic()
    theirs = torch.compile(lambda: prior.unet.run(low, step, 3), **options)
    eps = theirs().clone()
    facts = {"seconds to compile": time.monotonic() - started}
    works = {"torch.compile": theirs, "ddfm_fast": place.captured(forward(prior, x))}
    check = Parity("ours against torch.compile", apart(eps, works["ddfm_fast"]()), limit)
    return place.measure(works, check, baseline="torch.compile", facts=facts, repeats=20)
