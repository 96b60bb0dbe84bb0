"""The parts of a step, each alone, against the least bytes that it must move.

On a GPU these are the kernels and the FFTs, beside their plain twins. On a CPU, which runs no
kernel, they are the parts of the plain path beside what the authors' code does in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from skimage.color import rgb2ycbcr, ycbcr2rgb
from torch import Tensor

from ddfm_fast.rectify import (
    EMState,
    add_divergence_,
    e_step,
    get_solver,
    mean_inverse,
    rectify_plane,
    x_step,
)  # fmt: skip
from ddfm_fast.schedule import make_schedule
from ddfm_fast.step import ReverseStep

from ..data import Planes, planes
from ..place import Place, Task, in_turn, largest_difference, named, require
from ..reference import ReferenceLoop, convert_colors, em_initial, em_onestep
from ..results import Measurement, Parity
from .step import ETA, PSI, make_rectifier, rows_of, sizes

ABOUT = "each kernel (on a CPU: each part of the plain path) against its twin and its floor"
RHS_PLANES, UPDATE_PLANES, SCALE_PLANES, FFT_PLANES = 10, 12, 2, 2
"""float32 planes that each must read or write once; a spectrum counts as one"""
LIMIT = 1e-4
RATIO = ETA / (2 * PSI + ETA)
ROW = 40


def tasks(place: Place) -> list[Task]:
    """Every part at every size of a step."""
    works: dict[str, Callable] = {"kernels of a step": on_gpu}
    if not place.on_gpu:
        works = {n: partial(on_cpu, n, build, moved) for n, (build, moved) in PARTS.items()}
    return [
        Task("kernels", name, named(*size), partial(work, place, *size))
        for size in sizes(place)
        for name, work in works.items()
    ]


def on_cpu(
    name: str, build: Callable, moved: int, place: Place, height: int, width: int
) -> Measurement:
    """``build(planes)`` → the reference's and our function, which give equal tensors."""
    sets = [planes(height, width, place.device, n) for n in range(place.sets(height, width))]
    pairs = [build(data) for data in sets]
    theirs, ours = pairs[0]
    check = Parity(f"{name}, ours against the reference", difference(theirs(), ours()), LIMIT)
    works = {
        "reference": in_turn([a for a, _ in pairs]),
        "ddfm_fast": in_turn([b for _, b in pairs]),
    }
    floors = {"ddfm_fast": place.floor(moved * 4 * height * width)}
    return place.measure(works, check, floors=floors, repeats=15)


def difference(a: Tensor, b: Tensor) -> float:
    """Relative to the largest value, where that is above 1."""
    return largest_difference(a, b) / max(1.0, float(a.abs().max()))


def predict(d: Planes):
    """f̃₀ from x_t and ε."""
    schedule = make_schedule(100)
    loop, row = ReferenceLoop(schedule.timesteps, schedule.betas), rows_of()[ROW]
    t, x0 = torch.tensor([99 - ROW]), torch.empty_like(d.x)
    return (
        lambda: loop.split(d.x, t, d.out),
        lambda: (
            torch.mul(d.x, row.recip, out=x0).sub_(d.out[:, :3], alpha=row.recipm1).clamp_(-1, 1)
        ),
    )


def color(d: Planes):
    """Luma out of an RGB image, and another luma put in its place."""
    i, v, x, _ = d
    rectifier, image = ReverseStep(i, v), x.clamp(-1, 1)

    def theirs() -> Tensor:
        ycbcr = convert_colors(rgb2ycbcr, image, double=False) / 255
        ycbcr[:, 0] = i[:, 0]
        return convert_colors(ycbcr2rgb, ycbcr * 255, double=True)

    def ours() -> Tensor:
        luma = rectifier.luma(image[0])
        return image.add(torch.sub(i[0, 0], luma), alpha=rectifier.variant.writeback)

    return theirs, ours


def em(d: Planes):
    """One EM step on the luma plane, from the first state."""
    i, v, x, _ = d
    f, y, one = x.mean(1, keepdim=True).clamp(-1, 1), (i - v)[0, 0], torch.ones(())
    state, zero = em_initial(i), torch.zeros_like(y)
    solve = get_solver(*i.shape[-2:], i.dtype, i.device)

    def ours() -> Tensor:
        first = EMState(zero, one, one)
        return rectify_plane(f[0, 0], v[0, 0], y, first, solve, psi=PSI, eta=ETA)[None, None]

    return lambda: em_onestep(f, i, v, state, PSI, ETA)[0], ours


def k_solve(d: Planes):
    """k from the right-hand side and the k before: four complex FFTs, and two real ones."""
    i, v, x, _ = d
    state, before, y = em_initial(i), x[0, 0], (i - v)[0, 0]
    solve = get_solver(*i.shape[-2:], i.dtype, i.device)
    down, right = before.clone(), before.clone()
    right[:, :-1] -= before[:, 1:]
    down[:-1] -= before[1:]
    f1, f2, rhs = RATIO * right, RATIO * down, torch.empty_like(y)

    def theirs() -> Tensor:
        spectrum = (
            torch.fft.fft2(y)
            + state["k1"].conj() * torch.fft.fft2(f1)
            + state["k2"].conj() * torch.fft.fft2(f2)
        )
        return torch.fft.ifft2(spectrum / (1 + state["k1sq"] + state["k2sq"])).real

    return theirs, lambda: solve(add_divergence_(rhs.copy_(y), before, RATIO, True))


PARTS: dict[str, tuple[Callable, int]] = {
    "x0 from x_t and eps": (predict, 9),
    "luma out and back in": (color, 8),
    "k-solve": (k_solve, 3),
    "EM step on the luma": (em, 6),
}
"""each with the float32 planes that it must read or write once"""


def _weights(rectifier: ReverseStep, x: Tensor, out: Tensor):
    """What both twins begin with, for one image: f̃₀, its luma, x, and the inverse weights."""
    row, state = rectifier.rows[rectifier.step], rectifier.states[0]
    x0 = torch.mul(x[0], row.recip).sub_(out[0, :3], alpha=row.recipm1).clamp_(-1, 1)
    f = rectifier.luma(x0)
    d = f - rectifier.v[0]
    p, q = e_step(d, rectifier.y[0], state.gamma, state.rho, True)
    return row, x0, f, d, p, q


def twin_rhs(rectifier: ReverseStep, x: Tensor, out: Tensor) -> Tensor:
    """The right-hand side of the k-solve, and the sums for γ and ρ."""
    _, _, _, d, p, q = _weights(rectifier, x, out)
    mean_inverse(p, True), mean_inverse(q, True)
    rhs = torch.sub(rectifier.y[0], d, out=d)
    return add_divergence_(rhs, rectifier.states[0].k, RATIO, True)


def twin_update(rectifier: ReverseStep, x: Tensor, out: Tensor, k: Tensor) -> Tensor:
    """x-step, luma written back, and the sampler's update: a new x."""
    row, x0, f, _, p, q = _weights(rectifier, x, out)
    fused = torch.sub(rectifier.y[0], x_step(rectifier.y[0], k, p, q, ETA, True))
    x0.add_(fused.add_(rectifier.v[0]).sub_(f), alpha=rectifier.variant.writeback)
    return torch.mul(x[0], row.a).add_(x0, alpha=row.b)[None]


def kernel_parity(i, v, x, out) -> list[Parity]:
    """Each kernel against its twin, at the second step, whose k, γ and ρ are not the first's."""
    from ddfm_fast.kernels.ksolve import spectral_scale_

    kernels = make_rectifier("torch", i, v)
    twin = ReverseStep(i, v, rows=rows_of(), psi=PSI, eta=ETA)
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
        "rhs kernel": difference(rhs, kernels.rhs[0]),
        "update kernel": difference(x_next, a),
        "spectral scale": difference(
            torch.view_as_real(spectrum * twin.solver.inverse), torch.view_as_real(scaled)
        ),
    }
    return [Parity(f"{name} against its twin", worst, LIMIT) for name, worst in found.items()]


def on_gpu(place: Place, height: int, width: int) -> Measurement:
    """Each kernel and each FFT alone, in graphs over sets of planes that exceed the cache."""
    from ddfm_fast.kernels.ksolve import spectral_scale_

    sets = [planes(height, width, place.device, n) for n in range(place.sets(height, width))]
    parity = require(*kernel_parity(*sets[0]))
    rectifiers = [make_rectifier("torch", i, v) for i, v, _, _ in sets]
    twins = [ReverseStep(i, v, rows=rows_of(), psi=PSI, eta=ETA) for i, v, _, _ in sets]
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
    candidates = {key: work for key, (_, work) in works.items()}
    floors = {key: place.floor(moved * 4 * height * width) for key, (moved, _) in works.items()}
    calls = dict.fromkeys(candidates, len(sets))
    found = place.measure(
        candidates, *parity, baseline=None, floors=floors, calls=calls, repeats=40
    )
    times = {key: candidate.median for key, candidate in found.candidates.items()}
    ratios = {n: times[f"{n}, twin"] / times[f"{n} kernel"] for n in ("rhs", "update")}
    found.facts = {"sets of planes": len(sets), "times faster than the twin": ratios}
    return found
