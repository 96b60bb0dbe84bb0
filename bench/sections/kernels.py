"""The kernels and FFTs of a step, each alone, compared with twins and the least bytes to move."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ddfm_fast.rectify import add_divergence_, e_step, mean_inverse, x_step
from ddfm_fast.step import ReverseStep

from ..data import planes
from ..place import Place, Task, apart, named, require
from ..results import Measurement, Parity
from .step import ETA, PSI, make_step, sizes

ABOUT = "each kernel of a step against its twin and its floor (on a GPU)"
RHS_PLANES, UPDATE_PLANES, SCALE_PLANES, FFT_PLANES = 10, 12, 2, 2
"""float32 planes that each must read or write once; a spectrum counts as one"""
LIMIT = 1e-4
RATIO = ETA / (2 * PSI + ETA)


def tasks(place: Place) -> list[Task]:
    """Return the kernels at each size; nothing on a CPU, which runs no kernel."""
    return [
        Task("kernels", "kernels of a step", named(*size), partial(measure, place, *size))
        for size in sizes(place)
        if place.on_gpu
    ]


def _weights(rectifier: ReverseStep, x: Tensor, out: Tensor):
    """Compute what both twins begin with, for one image: f̃₀, its luma, x, inverse weights."""
    row, state = rectifier.rows[rectifier.step], rectifier.states[0]
    x0 = torch.mul(x[0], row.recip).sub_(out[0, :3], alpha=row.recipm1).clamp_(-1, 1)
    f = rectifier.luma(x0)
    d = f - rectifier.v[0]
    p, q = e_step(d, rectifier.y[0], state.gamma, state.rho, True)
    return row, x0, f, d, p, q


def twin_rhs(rectifier: ReverseStep, x: Tensor, out: Tensor) -> Tensor:
    """Return the right-hand side of the k-solve, and the sums for γ and ρ."""
    _, _, _, d, p, q = _weights(rectifier, x, out)
    mean_inverse(p, True), mean_inverse(q, True)
    rhs = torch.sub(rectifier.y[0], d, out=d)
    return add_divergence_(rhs, rectifier.states[0].k, RATIO, True)


def twin_update(rectifier: ReverseStep, x: Tensor, out: Tensor, k: Tensor) -> Tensor:
    """Take the x-step, write luma back, and apply the sampler's update; return a new x."""
    row, x0, f, _, p, q = _weights(rectifier, x, out)
    fused = torch.sub(rectifier.y[0], x_step(rectifier.y[0], k, p, q, ETA, True))
    x0.add_(fused.add_(rectifier.v[0]).sub_(f), alpha=rectifier.variant.writeback)
    return torch.mul(x[0], row.a).add_(x0, alpha=row.b)[None]


def kernel_parity(i, v, x, out) -> list[Parity]:
    """Compare each kernel with its twin at the second step, whose k, γ and ρ are not initial."""
    from ddfm_fast.kernels.ksolve import spectral_scale_

    kernels, twin = (make_step(solver, i, v) for solver in ("torch", "plain"))
    eps, a, b = out[:, :3], x.clone(), x.clone()
    kernels.step_(a, eps)
    twin.step_(b, eps)
    kernels.rhs_(a, eps)
    rhs = twin_rhs(twin, b, eps)
    k = twin.solver(rhs.clone())
    x_next = twin_update(twin, b, eps, k)
    kernels.update_(a, eps, k[None].contiguous())
    size = tuple(i.shape[-2:])
    spectrum = torch.fft.rfft2(rhs[None])
    scaled = spectral_scale_(spectrum.clone(), *size)
    found = {
        "rhs kernel": apart(rhs, kernels.rhs[0]),
        "update kernel": apart(x_next, a),
        "spectral scale": apart(
            torch.view_as_real(spectrum * twin.solver.inverse), torch.view_as_real(scaled)
        ),
    }
    return [Parity(f"{name} against its twin", worst, LIMIT) for name, worst in found.items()]


def measure(place: Place, height: int, width: int) -> Measurement:
    """Time each kernel and FFT alone, in graphs over sets of planes that exceed the cache."""
    from ddfm_fast.kernels.ksolve import spectral_scale_

    sets = [planes(height, width, place.device, n) for n in range(place.sets(height, width))]
    parity = require(*kernel_parity(*sets[0]))
    rectifiers, twins = ([make_step(n, s.i, s.v) for s in sets] for n in ("torch", "plain"))
    size, spectra = (height, width), [torch.fft.rfft2(r.rhs.normal_()) for r in rectifiers]
    x_out = [(s.x, s.out) for s in sets]

    def each(function: Callable, *arguments: list) -> Callable:
        columns = list(zip(*arguments, strict=True))
        return place.replay(lambda: [function(*row) for row in columns])

    irfft = partial(torch.fft.irfft2, s=size, norm="forward")
    works = {
        "rhs kernel": (RHS_PLANES, each(lambda r, d: r.rhs_(*d), rectifiers, x_out)),
        "rhs, twin": (RHS_PLANES, each(lambda t, d: twin_rhs(t, *d), twins, x_out)),
        "update kernel": (UPDATE_PLANES, each(lambda r, d: r.update_(*d, r.k), rectifiers, x_out)),
        "update, twin": (
            UPDATE_PLANES,
            each(lambda t, r, d: twin_update(t, *d, r.k[0]), twins, rectifiers, x_out),
        ),
        "spectral scale": (SCALE_PLANES, each(lambda f: spectral_scale_(f, *size), spectra)),
        "rfft2": (FFT_PLANES, each(lambda r: torch.fft.rfft2(r.rhs), rectifiers)),
        "irfft2": (FFT_PLANES, each(irfft, spectra)),
    }
    floors = {key: place.floor(moved * 4 * height * width) for key, (moved, _) in works.items()}
    timing = {"calls": dict.fromkeys(works, len(sets)), "floors": floors, "repeats": 40}
    candidates = {key: work for key, (_, work) in works.items()}
    found = place.measure(candidates, *parity, baseline=None, **timing)
    times = {key: candidate.median for key, candidate in found.candidates.items()}
    ratios = {n: times[f"{n}, twin"] / times[f"{n} kernel"] for n in ("rhs", "update")}
    found.facts = {"sets of planes": len(sets), "times faster than the twin": ratios}
    return found
