"""Steps by the kernels on small planes, and what their twins make of the same inputs."""

from __future__ import annotations

import os

import torch

from ddfm_fast.noise import normals
from ddfm_fast.rectify import (
    add_divergence_,
    balanced_weights,
    e_step,
    x_step,
    x_step_printed,
)
from ddfm_fast.schedule import make_schedule, step_rows
from ddfm_fast.step import learned_sigma

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""whether this process interprets its kernels: settled when triton is first imported"""
SIZES = [(1, 16, 16), (2, 17, 31), (3, 37, 53), (1, 1, 20), (1, 20, 1), (1, 3, 150), (1, 5, 261)]
GUARD = 64
PSI, ETA = 0.5, 0.3
SEEDS = (3407, 2**33 + 5, 11)


def guarded(*shape, dtype=torch.float32):
    """Make a NaN-filled tensor between NaN-filled margins, and a check that these are still so."""
    count = torch.Size(shape).numel()
    whole = torch.full((count + 2 * GUARD,), float("nan"), dtype=dtype)

    def margins_are_untouched():
        return bool(whole[:GUARD].isnan().all() and whole[-GUARD:].isnan().all())

    return whole[GUARD:-GUARD].view(shape), margins_are_untouched


def rows_of(sampler="ddim", steps=6):
    return step_rows(make_schedule(steps), sampler)


def pair(n, height, width, seed=0):
    """Draw sources i, v [N, 1, H, W] in [−1, 1] and x_t [N, 3, H, W]."""
    generator = torch.Generator().manual_seed(seed + 100 * height + width)
    i, v = torch.tanh(torch.randn(2, n, 1, height, width, generator=generator))
    return i, v, torch.randn(n, 3, height, width, generator=generator)


def prior(x):
    return torch.tanh(0.7 * x)


def prior_with_variance(x):
    return torch.cat([prior(x), torch.sin(3 * x)], 1)


def midway(size, variant, *, row=3, cls=None, sampler="ddim", noise="none", **options):
    """Make a rectifier in mid-run (k, γ and ρ are not the first ones), and its x_t and ε."""
    from ddfm_fast.kernels import TritonStep

    i, v, x_t = pair(*size)
    rectifier = (cls or TritonStep)(
        i, v, rows=rows_of(sampler), variant=variant, psi=PSI, eta=ETA, noise=noise,
        seeds=torch.tensor(SEEDS[: size[0]]), **options,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    rectifier.k.copy_(torch.randn(rectifier.k.shape, generator=generator) / 2)
    scales = 0.3 + torch.rand(size[0], 2, generator=generator)
    rectifier.scale_pair[:] = scales
    rectifier.step_pair.fill_(row)
    out = prior(x_t) if noise != "learned" else prior_with_variance(x_t)
    return rectifier, x_t, out


def plain(rectifier, x_t, out, dtype, *, row=3, sampler="ddim", scales=None):
    """Return what the twins make of the same inputs: rhs, mean p, q, f̂₀, x_{t-1}; k as it is."""
    variant, step, row = rectifier.variant, row, rows_of(sampler)[row]
    official, balanced = variant.name == "official", variant.name == "gradient"
    scales = rectifier.scale_pair[0] if scales is None else scales
    x_t, out, v, y, k, scales = (
        tensor.to(dtype) for tensor in (x_t, out, rectifier.v, rectifier.y, rectifier.k, scales)
    )
    gamma, rho = scales[:, 0, None, None], scales[:, 1, None, None]
    x0 = (row.recip * x_t - row.recipm1 * out[:, :3]).clamp(-1, 1)
    weights = torch.tensor(variant.luma_weights, dtype=dtype)
    luma = (x0 * weights[:, None, None]).sum(1) + variant.luma_offset
    x = luma - v
    p, q = (balanced_weights(y),) * 2 if balanced else e_step(x, y, gamma, rho, official)
    rhs = y - x if official else x.clone()
    if balanced:
        rhs += 2 * PSI / (2 * PSI + ETA) * rectifier.target.to(dtype)
    add_divergence_(rhs, k, ETA / (2 * PSI + ETA), official)
    if variant.name == "printed":
        x = x_step_printed(y, k, p, q, gamma, rho, ETA)
    else:
        x = x_step(y, k, p, q, ETA, official)
    fused = (y - x if official else x) + v
    x0 = x0 + variant.writeback * (fused - luma)[:, None]
    noise = 0.0
    if rectifier.noise != "none":
        noise = normals(rectifier.seeds, step, *v.shape[1:], dtype)
        noise = noise * (
            row.sigma if rectifier.noise == "fixed" else learned_sigma(out[:, 3:], row)
        )
    return dict(
        rhs=rhs, p=p.mean((1, 2)), q=q.mean((1, 2)), x0=x0, x=row.a * x_t + row.b * x0 + noise
    )


def assert_as_good(got, plain32, exact, name):
    """Check that the error is at most twice plain float32's, against float64, plus a rounding."""
    exact_size = float(exact.abs().max())
    allowed = 2 * float((plain32 - exact).abs().max()) + 2e-7 * exact_size
    assert torch.isfinite(got).all(), name
    assert float((got - exact).abs().max()) <= allowed, name


def run_loop(rectifier, x_t, rows, prior=prior):
    """Run the steps; return x after every one."""
    x, seen = x_t.clone(), []
    for _ in rows:
        x = rectifier.step_(x, prior(x))
        seen.append(x.clone())
    return torch.stack(seen)


def enlarge_tiles(monkeypatch) -> None:
    """Make tiles as large as small images: what is slow here is the number of programs."""
    from ddfm_fast.kernels import ksolve
    from ddfm_fast.kernels import step as step_kernels

    for module in (step_kernels, ksolve):
        monkeypatch.setattr(module, "BLOCK_H", 64)
        monkeypatch.setattr(module, "BLOCK_W", 128)
