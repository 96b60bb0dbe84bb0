"""The kernels in Triton's interpreter, on the CPU, against their plain twins.

Whether kernels are interpreted is settled when triton is first imported, so the tests run in a
process of their own: ``test_in_the_interpreter`` starts pytest on this file with
TRITON_INTERPRET=1, under which it collects the classes instead. To see them one by one:

    TRITON_INTERPRET=1 python -m pytest tests/test_kernels.py
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddfm_fast.rectify import (
    VARIANTS,
    KSolver,
    Rectifier,
    add_divergence_,
    balanced_weights,
    e_step,
    x_step,
    x_step_printed,
)
from ddfm_fast.schedule import make_schedule, step_rows

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    import triton

    from ddfm_fast.kernels import ksolve, rectify

CPU = torch.device("cpu")
SIZES = [(1, 16, 16), (2, 17, 31), (3, 37, 53), (1, 1, 20), (1, 20, 1), (1, 3, 150), (1, 5, 261)]
GUARD = 64
PSI, ETA = 0.5, 0.3


@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
def test_in_the_interpreter():
    pytest.importorskip("triton", reason="triton does not import here", exc_type=ImportError)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parent.parent
    run = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-20000:] + run.stderr[-2000:]


def guarded(*shape, dtype=torch.float32):
    """A NaN-filled tensor between NaN-filled margins, and a check that these are still so."""
    count = torch.Size(shape).numel()
    whole = torch.full((count + 2 * GUARD,), float("nan"), dtype=dtype)

    def margins_are_untouched():
        return bool(whole[:GUARD].isnan().all() and whole[-GUARD:].isnan().all())

    return whole[GUARD:-GUARD].view(shape), margins_are_untouched


def rows_of(sampler="ddim", steps=6):
    return step_rows(make_schedule(steps), sampler)


def pair(n, height, width, seed=0):
    """Sources i, v [N, 1, H, W] in [−1, 1] and x_t [N, 3, H, W]."""
    generator = torch.Generator().manual_seed(seed + 100 * height + width)
    i, v = torch.tanh(torch.randn(2, n, 1, height, width, generator=generator))
    return i, v, torch.randn(n, 3, height, width, generator=generator)


def prior(x):
    return torch.tanh(0.7 * x)


def midway(size, variant, *, row=3, **options):
    """A rectifier in the middle of a run (k, γ and ρ are not the first ones), x_t and ε."""
    i, v, x_t = pair(*size)
    rectifier = rectify.TritonRectifier(
        i, v, rows=rows_of(), variant=variant, psi=PSI, eta=ETA, **options
    )
    generator = torch.Generator().manual_seed(7)
    rectifier.k.copy_(torch.randn(rectifier.k.shape, generator=generator) / 2)
    rectifier.scales.copy_(0.3 + torch.rand(rectifier.scales.shape, generator=generator))
    rectifier.step.fill_(row)
    return rectifier, x_t, prior(x_t)


def plain(rectifier, x_t, eps, dtype, *, row=3, noise=0.0):
    """What the twins make of the same inputs: rhs, mean p and q, f̂₀, x_{t-1}; k as it stands."""
    variant, row = rectifier.variant, rows_of()[row]
    official, balanced = variant.name == "official", variant.name == "gradient"
    x_t, eps, v, y, k, scales = (
        tensor.to(dtype)
        for tensor in (x_t, eps, rectifier.v, rectifier.y, rectifier.k, rectifier.scales)
    )
    gamma, rho = scales[:, 0, None, None], scales[:, 1, None, None]
    x0 = (row.recip * x_t - row.recipm1 * eps).clamp(-1, 1)
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
    return dict(
        rhs=rhs, p=p.mean((1, 2)), q=q.mean((1, 2)), x0=x0, x=row.a * x_t + row.b * x0 + noise
    )


def assert_as_good(got, plain32, exact, name):
    """The error against float64 is at most twice that of the plain float32 code, and a rounding."""
    exact_size = float(exact.abs().max())
    allowed = 2 * float((plain32 - exact).abs().max()) + 2e-7 * exact_size
    assert torch.isfinite(got).all(), name
    assert float((got - exact).abs().max()) <= allowed, name


@pytest.fixture
def one_tile(monkeypatch):
    """Tiles as large as small images: what is slow here is the number of programs."""
    for module in (rectify, ksolve):
        monkeypatch.setattr(module, "BLOCK_H", 64)
        monkeypatch.setattr(module, "BLOCK_W", 128)


@pytest.mark.parametrize("size", SIZES)
class TestKernels:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_before_the_solve(self, variant, size):
        rectifier, x_t, eps = midway(size, variant)
        rectifier.rhs, rhs_intact = guarded(*rectifier.rhs.shape)
        rectifier.partial, partial_intact = guarded(*rectifier.partial.shape)
        inputs = x_t.clone(), eps.clone(), rectifier.k.clone(), rectifier.scales.clone()
        rectifier.rhs_(x_t, eps)
        exact, plain32 = (plain(rectifier, x_t, eps, d) for d in (torch.float64, torch.float32))
        assert_as_good(rectifier.rhs, plain32["rhs"], exact["rhs"], "rhs")
        if rectifier.update_scales:
            means = rectifier.partial.sum(2) / (size[1] * size[2])
            assert_as_good(means[:, 0], plain32["p"], exact["p"], "p")
            assert_as_good(means[:, 1], plain32["q"], exact["q"], "q")
        assert rhs_intact() and partial_intact()
        for before, after in zip(inputs, (x_t, eps, rectifier.k, rectifier.scales), strict=True):
            assert torch.equal(before, after)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_after_the_solve(self, variant, size):
        rectifier, x_t, eps = midway(size, variant, keep_x0=True)
        exact, plain32 = (plain(rectifier, x_t, eps, d) for d in (torch.float64, torch.float32))
        x, x_intact = guarded(*x_t.shape)
        rectifier.x0, x0_intact = guarded(*x_t.shape)
        rectifier.update_(x.copy_(x_t), eps)
        assert_as_good(rectifier.x0, plain32["x0"], exact["x0"], "x0")
        assert_as_good(x, plain32["x"], exact["x"], "x")
        assert x_intact() and x0_intact()

    def test_spectral_scale(self, size, one_tile):
        n, height, width = size
        spectrum, intact = guarded(n, height, width // 2 + 1, dtype=torch.complex64)
        spectrum.copy_(torch.randn(spectrum.shape, dtype=torch.complex64))
        exact = spectrum.to(torch.complex128) * KSolver(height, width, torch.float64, CPU).inverse
        ksolve.spectral_scale_(spectrum, height, width)
        assert float(((spectrum - exact).abs() / exact.abs()).max()) < 4e-7
        assert intact()

    def test_solve(self, size, one_tile):
        rhs = torch.randn(size, generator=torch.Generator().manual_seed(1))
        k, intact = guarded(*size)
        address, before = k.data_ptr(), rhs.clone()
        assert ksolve.solve_k_(rhs, k) is k and k.data_ptr() == address and intact()
        exact = KSolver(*size[1:], torch.float64, CPU)(rhs.double())
        assert float((k - exact).abs().max() / exact.abs().max()) < 1e-6
        assert torch.equal(rhs, before)


class TestOneStep:
    __test__ = INTERPRETED
    SIZE = (2, 5, 31)

    def layouts(self, eps):
        wide = torch.full((2, 6, *eps.shape[2:]), float("nan"), dtype=eps.dtype)
        wide[:, :3] = eps
        last = wide.to(memory_format=torch.channels_last)
        return eps.to(memory_format=torch.channels_last), wide[:, :3], last[:, :3]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_eps_dtype_and_layout(self, dtype, one_tile):
        """The bytes of a float32 copy, whatever the layout of what the prior gives."""
        _, x_t, eps = midway(self.SIZE, "official")
        eps = eps.to(dtype)
        wanted, x = midway(self.SIZE, "official")[0], x_t.clone()
        wanted.step_(x, eps.float())
        for given in self.layouts(eps):
            got, y = midway(self.SIZE, "official")[0], x_t.clone()
            got.step_(y, given)
            assert torch.equal(y, x) and torch.equal(got.k, wanted.k)
            assert torch.equal(got.scales, wanted.scales)

    def test_noise_of_one_image_or_of_each(self, one_tile):
        rectifier, x_t, eps = midway(self.SIZE, "paper")
        for images in (1, 2):
            noise = torch.randn(images, *x_t.shape[1:])
            exact, plain32 = (
                plain(rectifier, x_t, eps, dtype, noise=noise)["x"]
                for dtype in (torch.float64, torch.float32)
            )
            x = x_t.clone()
            rectifier.update_(x, eps, noise)
            assert_as_good(x, plain32, exact, images)

    def test_scales_are_finished_in_order(self):
        """2,500 tiles an image: three rounds, the last one masked; alone or in a batch the same."""
        rectifier, _, _ = midway((3, 16, 16), "official")
        rectifier.partial = torch.rand(3, 2, 2500, generator=torch.Generator().manual_seed(2))
        old = rectifier.scales.clone()
        exact = rectifier.partial.double().sum(2) / 256 + old.double() / 2
        rectifier.finish_()
        assert float((rectifier.scales / exact - 1).abs().max()) < 3e-7
        assert rectifier.step.item() == 4
        for n in range(3):
            alone, _, _ = midway((1, 16, 16), "official")
            alone.partial, alone.scales = rectifier.partial[n : n + 1], old[n : n + 1].clone()
            alone.finish_()
            assert torch.equal(alone.scales[0], rectifier.scales[n])

    @pytest.mark.parametrize("variant", ["paper", "gradient"])
    def test_scales_stay_where_they_are_not_updated(self, variant, one_tile):
        rectifier, x_t, eps = midway(self.SIZE, variant, update_scales=False)
        before = rectifier.scales.clone()
        rectifier.partial.fill_(float("nan"))
        rectifier.step_(x_t, eps, 5)
        assert torch.equal(rectifier.scales, before)
        assert rectifier.step.item() == 0, "after the last row comes the first"

    def test_nan_from_the_prior_is_not_hidden(self, one_tile):
        rectifier, x_t, eps = midway((1, 16, 16), "official")
        eps[0, 1, 2, 3] = float("nan")
        rectifier.update_(x_t, eps)
        assert x_t[0, :, 2, 3].isnan().all() and int(x_t.isnan().sum()) == 3

    def test_offsets_beyond_two_to_the_31(self, one_tile):
        """ε of the third image starts past element 2³¹ (4 GiB reserved, hardly any of it used)."""
        rectifier, x_t, eps = midway((3, 4, 8), "official")
        try:
            far = torch.empty(2**31 + 128, dtype=torch.float16)
        except RuntimeError as error:
            pytest.skip(f"4 GiB cannot be reserved: {error}")
        given = far.as_strided(eps.shape, (2**30 + 16, 32, 8, 1)).copy_(eps)
        x = x_t.clone()
        rectifier.update_(x_t, eps.half())
        rectifier.update_(x, given)
        assert torch.equal(x, x_t)

    def test_launches_of_a_step(self, monkeypatch):
        """Four launches beside the two of torch.fft, and what the host passes does not change."""
        rectifier, x_t, eps = midway((1, 16, 16), "official")
        launches = []
        run = triton.runtime.interpreter.InterpretedFunction.run

        def noted(kernel, *args, **kwargs):
            passed = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args]
            launches.append(
                (kernel.__name__, passed[:-1] if "spectral" in kernel.__name__ else passed)
            )
            return run(kernel, *args, **kwargs)

        monkeypatch.setattr(triton.runtime.interpreter.InterpretedFunction, "run", noted)
        rectifier.step_(x_t, eps)
        names = [name for name, _ in launches]
        assert names == [
            "_rectify_rhs_kernel", "_spectral_scale_kernel",
            "_rectify_update_kernel", "_finish_step_kernel",
        ]  # fmt: skip
        first = [args for name, args in launches if "spectral" not in name]
        launches.clear()
        rectifier.step_(x_t, eps)
        assert [args for name, args in launches if "spectral" not in name] == first


def run_loop(rectifier, x_t, rows, step, noises=None):
    """x after every step; ``step(rectifier, x, eps, row, noise)`` takes one."""
    x, seen = x_t.clone(), []
    for s, row in enumerate(rows):
        step(rectifier, x, prior(x), row, None if noises is None else noises[s])
        seen.append(x.clone())
    return torch.stack(seen)


def plain_steps(rectifier, x, eps, row, noise):
    rectifier.step_(x, eps, row, noise)


def triton_steps(rectifier, x, eps, row, noise):
    rectifier.step_(x, eps, noise=noise)


class TestLoops:
    """Measured over the six-step loops, relative to the largest value: x_t within 1.6e-7, f̂₀ within
    4.5e-7, γ and ρ within 1.2e-7."""

    __test__ = INTERPRETED

    def compare(self, size, variant, rows, noises=None, update_scales=True):
        i, v, x_t = pair(*size, seed=3)
        settings = dict(variant=variant, psi=PSI, eta=ETA, update_scales=update_scales)
        twin = Rectifier(i, v, **settings)
        ours = rectify.TritonRectifier(i, v, rows=rows, keep_x0=True, **settings)
        wanted = run_loop(twin, x_t, rows, plain_steps, noises)
        got = run_loop(ours, x_t, rows, triton_steps, noises)
        assert float((got - wanted).abs().max() / wanted.abs().max()) < 2e-6
        assert float((ours.x0 - twin.x0).abs().max() / twin.x0.abs().max()) < 2e-6
        scales = torch.tensor([[s.gamma, s.rho] for s in twin.states])
        assert float((ours.scales / scales - 1).abs().max()) < 2e-6
        assert ours.step.item() == 0
        return ours, x_t, got

    @pytest.mark.parametrize("size", [(2, 37, 53), (1, 16, 16)])
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_six_steps(self, variant, size, one_tile):
        rows = rows_of()
        ours, x_t, got = self.compare(size, variant, rows)
        ours.reset()
        assert torch.equal(run_loop(ours, x_t, rows, triton_steps), got), "same call, same bytes"

    def test_ancestral_with_noise_and_fixed_scales(self, one_tile):
        rows = rows_of("ddpm")
        generator = torch.Generator().manual_seed(4)
        noises = [row.sigma * torch.randn(1, 3, 17, 31, generator=generator) for row in rows]
        self.compare((2, 17, 31), "paper", rows, noises, update_scales=False)

    def test_multistep_takes_the_prediction_before(self, one_tile):
        """c is 0 in the first row, where the plane of f̂₀ has never been written."""
        rows = [dataclasses.replace(row, c=-0.2 * (s > 0)) for s, row in enumerate(rows_of())]
        self.compare((1, 17, 31), "official", rows)

    @pytest.mark.parametrize("variant", ["official", "gradient"])
    def test_a_batch_gives_each_image_what_it_gets_alone(self, variant):
        rows = rows_of(steps=3)
        i, v, x_t = pair(3, 5, 140)

        def loop(part):
            alone = rectify.TritonRectifier(i[part], v[part], rows=rows, variant=variant, eta=ETA)
            return run_loop(alone, x_t[part], rows, triton_steps)

        together = loop(slice(None))
        for n in range(3):
            assert torch.equal(together[:, n], loop(slice(n, n + 1))[:, 0])


class TestErrors:
    __test__ = INTERPRETED

    def broken_step(self, change):
        rectifier, x_t, eps = midway((2, 16, 16), "official")
        given = dict(x_t=x_t, eps=eps)
        rectifier.step_(**{**given, **change(given)})

    @pytest.mark.parametrize(
        "change, error, words",
        [
            (lambda g: dict(x_t=g["x_t"].double()), TypeError, "x_t is torch.float64"),
            (lambda g: dict(x_t=g["x_t"][:1]), ValueError, "x_t has shape"),
            (lambda g: dict(x_t=g["x_t"].mT), ValueError, "x_t has strides"),
            (lambda g: dict(x_t=g["x_t"].to("meta")), ValueError, "x_t is on meta"),
            (lambda g: dict(eps=g["eps"].double()), TypeError, "eps is torch.float64"),
            (lambda g: dict(eps=g["eps"][:, :2]), ValueError, "eps has shape"),
            (lambda g: dict(row=6), ValueError, "row is 6; expected an int from 0 to 5"),
            (lambda g: dict(row=True), ValueError, "row is True"),
            (lambda g: dict(noise=g["eps"].half()), TypeError, "noise is torch.float16"),
            (lambda g: dict(noise=g["eps"][:, :1]), ValueError, "noise has shape"),
        ],
    )
    def test_step(self, change, error, words):
        with pytest.raises(error, match=words):
            self.broken_step(change)

    def test_construction(self):
        i, v, _ = pair(2, 16, 16)
        make = rectify.TritonRectifier
        for arguments, error, words in [
            ((i.double(), v), TypeError, "i is torch.float64"),
            ((i, v[:, 0]), ValueError, "v has shape"),
            ((i[:1], v), ValueError, "i has shape"),
            ((i.to("meta"), v.to("meta")), ValueError, "v is on meta; expected a CUDA device"),
        ]:
            with pytest.raises(error, match=words):
                make(*arguments, rows=rows_of())
        with pytest.raises(ValueError, match="variant is 'none'"):
            make(i, v, rows=rows_of(), variant="none")
        with pytest.raises(ValueError, match="rows is empty"):
            make(i, v, rows=[])

    def test_solve(self):
        rhs = torch.zeros(1, 4, 6)
        with pytest.raises(ValueError, match="k has shape"):
            ksolve.solve_k_(rhs, torch.zeros(1, 6, 4))
        with pytest.raises(ValueError, match="rhs has shape"):
            ksolve.solve_k_(rhs[0], rhs[0])
        with pytest.raises(TypeError, match="spectrum is torch.float32; expected complex64"):
            ksolve.spectral_scale_(rhs, 4, 6)
        with pytest.raises(ValueError, match="spans .* elements an image"):
            wide = torch.empty(1, 2, 2**31 + 1, device="meta")[..., :2]
            ksolve.check_tensor("eps", wide, (1, 2, 2), torch.float32, dense=False)
