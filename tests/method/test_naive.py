"""The method on one page against the whole fast loop, and against the authors' own loops."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import tanh_prior, tanh_prior_with_variance
from conftest import shared

from ddfm_fast import naive
from ddfm_fast.config import PRESETS
from ddfm_fast.noise import normals
from ddfm_fast.priors import load_prior
from ddfm_fast.sampler import prior_rows, sample
from ddfm_fast.step import ReverseStep

SEED = 3407
SIZES = [(33, 47), (17, 32), (32, 17)]

each_variant = pytest.mark.parametrize("variant", ["official", "paper"])
each_sampler = pytest.mark.parametrize("sampler", ["ddim", "ddpm"])


def planes(size, saturated=False):
    """Draw i, v [H, W] and f_T [3, H, W], float64; ``saturated``: white where f̃₀ is white, too."""
    generator = torch.Generator().manual_seed(size[0])
    i, v = torch.rand(2, *size, generator=generator, dtype=torch.float64) * 2 - 1
    f = torch.randn(3, *size, generator=torch.Generator().manual_seed(SEED)).double()
    if saturated:
        i[4:9, 5:12] = v[4:9, 5:12] = 1
        f[:, 4:9, 5:12] = 4
    return i, v, f


def naive_loop(i, v, f, config):
    """Return x_0 [3, H, W] of the page, with the z that the fast loop adds at each step."""
    seeds, size = torch.tensor([SEED]), i.shape
    noise = [f, *(normals(seeds, s, *size, f.dtype)[0] for s in range(config.steps))]
    names = ("variant", "sampler", "steps", "psi", "eta")
    return naive.ddfm(tanh_prior, i, v, noise, **{name: getattr(config, name) for name in names})


def fast_loop(i, v, f, config):
    """Return x_0 [3, H, W] by the step and the rows of ``sampler.Loop``, in any dtype."""
    rows = prior_rows(load_prior(tanh_prior), config)
    step = ReverseStep(
        i[None, None],
        v[None, None],
        rows=rows,
        noise="fixed" if config.sampler == "ddpm" else "none",
        seeds=torch.tensor([SEED]),
        variant=config.variant,
        psi=config.psi,
        eta=config.eta,
    )
    x = f[None].clone()
    for row in rows:
        step.step_(x, tanh_prior(x, torch.tensor([row.timestep])))
    return x[0]


@each_variant
@each_sampler
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps, eta", [(8, None), (8, 1.0), (21, 0.1), (1, 0.1)])
def test_the_fast_loop_computes_the_same_in_float64(variant, sampler, size, steps, eta):
    """With the preset's η and with stronger ones, and with 21 steps, whose timesteps round halves.

    The arithmetic is the same everywhere, the official 1/(m̄ + 1e-10) included: 3e-15 measured.
    """
    config = PRESETS[variant].with_overrides(sampler=sampler, steps=steps, eta=eta)
    got, wanted = naive_loop(*planes(size), config), fast_loop(*planes(size), config)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@each_sampler
def test_the_guard_of_the_paper_is_the_same(sampler):
    """Where i = v = f̃₀, |y − x| and |x| are 0."""
    config = PRESETS["paper"].with_overrides(sampler=sampler, steps=8)
    arguments = planes((33, 47), saturated=True)
    got, wanted = naive_loop(*arguments, config), fast_loop(*arguments, config)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@each_variant
@each_sampler
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("eta", [None, 1.0])
def test_float32_is_near(variant, sampler, size, eta):
    """``sample`` and the page in float32, against the page in float64.

    Values reach 2.5 and eight steps add their rounding: 7e-7 measured.
    """
    config = PRESETS[variant].with_overrides(sampler=sampler, steps=8, eta=eta)
    i, v, f = (p.float() for p in planes(size))
    wanted = naive_loop(i.double(), v.double(), f.double(), config).float()
    sampled = sample(load_prior(tanh_prior), i[None, None], v[None, None], config, seed=SEED)
    torch.testing.assert_close(sampled.x0[0], wanted, rtol=0, atol=5e-6)
    torch.testing.assert_close(naive_loop(i, v, f, config), wanted, rtol=0, atol=5e-6)


@pytest.mark.parametrize("case", ["s10", "s25_strong_tv", "s100"])
def test_the_authors_loops_are_matched(case):
    """Their float32, ours float64: 9e-6 measured, at 100 steps."""
    golden = np.load(shared("golden/ddim_loop.npz"))
    i, v, f = (torch.tensor(golden[f"{case}/{name}"][0]).double() for name in ("I", "V", "x_T"))
    steps, psi, eta = (golden[f"{case}/{name}"].item() for name in ("steps", "lamb", "rho"))
    seen = []

    def prior(x, t):
        seen.append(x[0])
        return tanh_prior_with_variance(x, t)

    seen.append(naive.ddfm(prior, i[0], v[0], [f], steps=steps, psi=psi, eta=eta))
    after = {f"{case}/x_after_step_{steps - s:04d}": x for s, x in enumerate(seen) if s}
    checked = after.keys() & set(golden.files)
    assert len(checked) >= 10 and f"{case}/x_after_step_0000" in checked
    for name in checked:
        np.testing.assert_allclose(after[name], golden[name][0], rtol=0, atol=3e-5)


def test_it_is_one_page_that_needs_torch_alone():
    source = Path(naive.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 80
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or "").split(".")[0])
    assert imported == {"torch"}
