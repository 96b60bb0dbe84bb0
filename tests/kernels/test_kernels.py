"""The kernels in Triton's interpreter, on the CPU, against their plain twins.

Whether kernels are interpreted is settled when triton is first imported, so the tests run in a
process of their own: ``test_in_the_interpreter`` starts pytest on this file with
TRITON_INTERPRET=1, under which it collects the classes instead, and those of test_graphs.py. To
see them one by one:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_kernels.py tests/method/test_graphs.py
"""

import contextlib
import ctypes
import dataclasses
import os
import sys
import types

import numpy as np
import pytest
import torch

from ddfm_fast.noise import normals
from ddfm_fast.rectify import (
    VARIANTS,
    KSolver,
    add_divergence_,
    balanced_weights,
    e_step,
    x_step,
    x_step_printed,
)
from ddfm_fast.schedule import make_schedule, step_rows
from ddfm_fast.step import NOISES, ReverseStep, learned_sigma

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    import triton

    from ddfm_fast.kernels import ksolve, tile
    from ddfm_fast.kernels import step as rectify

CPU = torch.device("cpu")
SIZES = [(1, 16, 16), (2, 17, 31), (3, 37, 53), (1, 1, 20), (1, 20, 1), (1, 3, 150), (1, 5, 261)]
GUARD = 64
PSI, ETA = 0.5, 0.3


@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.interpreted("tests/kernels/test_kernels.py", "tests/method/test_graphs.py")
def test_in_the_interpreter(assert_interpreted):
    assert_interpreted()


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


def prior_with_variance(x):
    return torch.cat([prior(x), torch.sin(3 * x)], 1)


SEEDS = (3407, 2**33 + 5, 11)


def midway(size, variant, *, row=3, cls=None, sampler="ddim", noise="none", **options):
    """A rectifier in the middle of a run (k, γ and ρ are not the first ones), x_t and ε."""
    i, v, x_t = pair(*size)
    rectifier = (cls or rectify.TritonStep)(
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
    """What the twins make of the same inputs: rhs, mean p and q, f̂₀, x_{t-1}; k as it stands."""
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
        rectifier.scale_pair[1], rectifier.step_pair[1] = float("nan"), 77
        inputs = x_t.clone(), eps.clone(), rectifier.k.clone(), rectifier.scales.clone()
        rectifier.rhs_(x_t, eps)
        exact, plain32 = (plain(rectifier, x_t, eps, d) for d in (torch.float64, torch.float32))
        assert_as_good(rectifier.rhs, plain32["rhs"], exact["rhs"], "rhs")
        if rectifier.update_scales:
            means = rectifier.partial.sum(2) / (size[1] * size[2])
            assert_as_good(means[:, 0], plain32["p"], exact["p"], "p")
            assert_as_good(means[:, 1], plain32["q"], exact["q"], "q")
        assert rhs_intact() and partial_intact()
        assert rectifier.step_pair.tolist() == [3, 3]
        if rectifier.update_scales:
            assert torch.equal(rectifier.scale_pair[1], rectifier.scale_pair[0])
        for before, after in zip(inputs, (x_t, eps, rectifier.k, rectifier.scales), strict=True):
            assert torch.equal(before, after)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_after_the_solve(self, variant, size):
        rectifier, x_t, eps = midway(size, variant, keep_x0=True)
        exact, plain32 = (plain(rectifier, x_t, eps, d) for d in (torch.float64, torch.float32))
        x, x_intact = guarded(*x_t.shape)
        rectifier.x0, x0_intact = guarded(*x_t.shape)
        rectifier.partial.fill_(1)
        rectifier.update_(x.copy_(x_t), eps, rectifier.k)
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
        before, k = rhs.clone(), torch.full(size, float("nan"))
        k = ksolve.TorchSolver(size, CPU)(rhs, k)
        exact = KSolver(*size[1:], torch.float64, CPU)(rhs.double())
        assert float((k - exact).abs().max() / exact.abs().max()) < 1e-6
        assert torch.equal(rhs, before)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_one_launch(self, variant, size):
        """The tile's k against the FFT in float64, and what follows from that k."""
        rectifier, x_t, eps = midway(size, variant, cls=tile.TileStep, keep_x0=True)
        rectifier.partial_pair[0].zero_()
        scales = rectifier.scale_pair[0].clone()
        if rectifier.update_scales:
            scales /= 2  # γ ← 0 + γ/2
        exact = plain(rectifier, x_t, eps, torch.float64, scales=scales)
        wanted_k = KSolver(*size[1:], torch.float64, CPU)(exact["rhs"])
        after, intact = guarded(*x_t.shape)
        rectifier.x0, x0_intact = guarded(*x_t.shape)
        rectifier.k_pair[1].fill_(float("nan"))
        rectifier.partial_pair[1].fill_(float("nan"))
        inputs = x_t.clone(), eps.clone(), rectifier.k_pair[0].clone()
        rectifier.step_(x_t, eps, after)
        assert intact() and x0_intact()
        for old, new in zip(inputs, (x_t, eps, rectifier.k_pair[0]), strict=True):
            assert torch.equal(old, new)
        assert float((rectifier.k - wanted_k).abs().max() / wanted_k.abs().max()) < 2e-6
        exact, plain32 = (
            plain(rectifier, x_t, eps, dtype, scales=scales)
            for dtype in (torch.float64, torch.float32)
        )
        assert_as_good(rectifier.x0, plain32["x0"], exact["x0"], "x0")
        assert_as_good(after, plain32["x"], exact["x"], "x")
        if rectifier.update_scales:
            means = rectifier.partial_pair[1].sum(2) / (size[1] * size[2])
            assert_as_good(means[:, 0], plain32["p"], exact["p"], "p")
            assert_as_good(means[:, 1], plain32["q"], exact["q"], "q")
        assert rectifier.next_step.item() == 4


def fake_cupy():
    """Modules cupy, cupy.cuda and cupyx.scipy.fft, as far as ``CupySolver`` uses them."""
    cupy, cuda, fft = types.ModuleType("cupy"), types.ModuleType("cupy.cuda"), types.ModuleType("f")

    def unowned(pointer, size, owner, device):
        return (ctypes.c_char * size).from_address(pointer)

    def ndarray(shape, dtype, pointer):
        return np.frombuffer(pointer, dtype).reshape(shape)

    class Plan:
        def __init__(self, kind, shape):
            self.kind, self.shape = kind, shape

        def fft(self, a, out, direction):
            assert direction == {"R2C": -1, "C2R": 1}[self.kind]
            if self.kind == "R2C":
                out[:] = np.fft.rfft2(a)
            else:
                out[:] = np.fft.irfft2(a, s=self.shape, norm="forward")
                a[:] = np.nan  # cuFFT may overwrite the input of this transform

    def get_fft_plan(a, shape=None, axes=None, value_type="C2C"):
        assert axes == (1, 2) and a.ndim == 3
        return Plan(value_type, shape)

    cuda.UnownedMemory, cuda.MemoryPointer = unowned, lambda memory, offset: memory
    cuda.PythonFunctionAllocator = lambda malloc, free: types.SimpleNamespace(malloc=malloc)
    cuda.using_allocator = lambda allocator: contextlib.nullcontext()
    cuda.cufft = types.SimpleNamespace(CUFFT_FORWARD=-1, CUFFT_INVERSE=1)
    cupy.cuda, cupy.ndarray, fft.get_fft_plan = cuda, ndarray, get_fft_plan
    return {"cupy": cupy, "cupy.cuda": cuda, "cupyx": types.ModuleType("cupyx"),
            "cupyx.scipy": types.ModuleType("cupyx.scipy"), "cupyx.scipy.fft": fft}  # fmt: skip


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

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize("noise", NOISES)
    @pytest.mark.parametrize("size", [(1, 3, 150), (3, 17, 31)])
    def test_noise(self, size, noise, dtype, one_tile):
        """By each image's seed; the prior's variance half comes with its ε."""
        settings = dict(sampler="ddpm", noise=noise)
        rectifier, x_t, out = midway(size, "paper", **settings)
        out = out.to(dtype)
        exact, plain32 = (
            plain(rectifier, x_t, out, d, sampler="ddpm")["x"]
            for d in (torch.float64, torch.float32)
        )
        rectifier.partial.fill_(1)
        got = x_t.clone()
        rectifier.update_(got, out, rectifier.k)
        # log, sine and exp of the two libraries differ by a rounding or two
        assert torch.isfinite(got).all()
        assert float((got - exact).abs().max()) <= 2 * float((plain32 - exact).abs().max()) + 2e-6

    @pytest.mark.parametrize("solver", ["torch", "tile"])
    def test_no_noise_after_the_last_row(self, solver, one_tile):
        cls = tile.TileStep if solver == "tile" else rectify.TritonStep
        results = []
        for noise in NOISES:
            rectifier, x_t, _ = midway((2, 5, 31), "paper", row=5, sampler="ddpm", noise=noise,
                                       cls=cls)  # fmt: skip
            results.append(rectifier.step_(x_t, prior_with_variance(x_t)))
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])

    def test_cupys_plans_are_asked_the_right_things(self, monkeypatch, one_tile):
        """CuPy needs a GPU even to make a plan; a stand-in of NumPy takes the same calls."""
        for name, module in fake_cupy().items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(ksolve.CupySolver, "_context", lambda self: contextlib.nullcontext())
        rhs = torch.randn(3, 17, 31, generator=torch.Generator().manual_seed(1))
        before, k = rhs.clone(), torch.full(rhs.shape, float("nan"))
        address = k.data_ptr()
        solve = ksolve.CupySolver(tuple(rhs.shape), CPU)
        for _ in range(2):
            assert solve(rhs, k) is k and k.data_ptr() == address and torch.equal(rhs, before)
            exact = KSolver(17, 31, torch.float64, CPU)(rhs.double())
            assert float((k - exact).abs().max() / exact.abs().max()) < 1e-6

    def test_scales_are_finished_in_order(self, monkeypatch):
        """Ten tiles an image, four at a time: three rounds, the last one masked; alone or in a
        batch the same."""
        monkeypatch.setattr(rectify, "SUM_BLOCK", 4)
        sums = torch.rand(3, 2, 10, generator=torch.Generator().manual_seed(2))
        old = 0.3 + torch.rand(3, 2, generator=torch.Generator().manual_seed(3))

        def finished(part):
            rectifier, x_t, eps = midway((len(sums[part]), 16, 16), "official")
            rectifier.partial, rectifier.scale_pair[1] = sums[part].clone(), old[part]
            rectifier.update_(x_t, eps, rectifier.k)
            assert rectifier.step_pair[0].item() == 4
            return rectifier.scales

        together = finished(slice(None))
        exact = sums.double().sum(2) / 256 + old.double() / 2
        assert float((together / exact - 1).abs().max()) < 3e-7
        for n in range(3):
            assert torch.equal(finished(slice(n, n + 1))[0], together[n])

    @pytest.mark.parametrize("variant", ["paper", "gradient"])
    def test_scales_stay_where_they_are_not_updated(self, variant, one_tile):
        rectifier, x_t, eps = midway(self.SIZE, variant, row=5, update_scales=False)
        before = rectifier.scales.clone()
        rectifier.partial.fill_(float("nan"))
        rectifier.step_(x_t, eps)
        assert torch.equal(rectifier.scales, before)
        assert rectifier.next_step.item() == 0, "after the last row comes the first"

    def test_nan_from_the_prior_is_not_hidden(self, one_tile):
        rectifier, x_t, eps = midway((1, 16, 16), "official")
        eps[0, 1, 2, 3] = float("nan")
        rectifier.partial.fill_(1)
        rectifier.update_(x_t, eps, rectifier.k)
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
        rectifier.partial.fill_(1)
        rectifier.update_(x_t, eps.half(), rectifier.k)
        rectifier.update_(x, given, rectifier.k)
        assert torch.equal(x, x_t)

    @pytest.mark.parametrize("solver", ["torch", "tile"])
    def test_launches_of_a_step(self, solver, monkeypatch):
        """Three launches beside those of torch.fft, or one; what the host passes does not change.

        With CuPy's plans an FFT of a plane is two launches each way (rows, columns), seven in all;
        torch.fft also copies the spectrum before its inverse, eight. On a GPU,
        tests/kernels/test_kernels_gpu.py counts them.
        """
        cls = tile.TileStep if solver == "tile" else rectify.TritonStep
        rectifier, x_t, eps = midway((1, 16, 16), "official", cls=cls)
        after, launches = torch.empty_like(x_t), []
        run = triton.runtime.interpreter.InterpretedFunction.run

        def noted(kernel, *args, **kwargs):
            passed = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args]
            launches.append((kernel.__name__, passed))
            return run(kernel, *args, **kwargs)

        def step():
            launches.clear()
            if solver == "tile":
                rectifier.step_(x_t, eps, after)
                rectifier.step_(after, eps, x_t)
            else:
                rectifier.step_(x_t, eps)
            names, spectral = [name for name, _ in launches], "_spectral_scale_kernel"
            # the solution and the spectrum are torch.fft's: where they lie is the allocator's
            passed = [args[:4] + args[5:] for name, args in launches if name != spectral]
            return names, passed

        monkeypatch.setattr(triton.runtime.interpreter.InterpretedFunction, "run", noted)
        names, first = step()
        assert (
            names
            == {
                "torch": [
                    "_rectify_rhs_kernel",
                    "_spectral_scale_kernel",
                    "_rectify_update_kernel",
                ],
                "tile": ["_rectify_tile_kernel"] * 2,
            }[solver]
        )
        assert step() == (names, first)


def run_loop(rectifier, x_t, rows, prior=prior):
    """x after every step."""
    x, seen = x_t.clone(), []
    for _ in rows:
        x = rectifier.step_(x, prior(x))
        seen.append(x.clone())
    return torch.stack(seen)


@pytest.mark.parametrize("solver", ["torch", "tile"])
class TestLoops:
    """Measured over the six-step loops, relative to the largest value: x_t within 6.4e-7, k within
    6.1e-7, γ and ρ within 2.4e-7; no worse by the tile than by the FFT."""

    __test__ = INTERPRETED

    def make(self, solver, *sources, **settings):
        if solver == "tile":
            return tile.TileStep(*sources, **settings)
        return rectify.TritonStep(*sources, solver=solver, **settings)

    def compare(self, solver, size, variant, rows, noise="none", update_scales=True):
        i, v, x_t = pair(*size, seed=3)
        settings = dict(
            rows=rows, variant=variant, psi=PSI, eta=ETA, update_scales=update_scales,
            noise=noise, seeds=torch.tensor(SEEDS[: size[0]]),
        )  # fmt: skip
        network = prior_with_variance if noise == "learned" else prior
        twin = ReverseStep(i, v, **settings)
        ours = self.make(solver, i, v, keep_x0=True, **settings)
        wanted = run_loop(twin, x_t, rows, network)
        got = run_loop(ours, x_t, rows, network)
        assert float((got - wanted).abs().max() / wanted.abs().max()) < 2e-6
        assert float((ours.x0 - twin.x0).abs().max() / twin.x0.abs().max()) < 2e-6
        k = torch.stack([s.k for s in twin.states])
        assert float((ours.k - k).abs().max() / k.abs().max()) < 2e-6
        scales = torch.tensor([[s.gamma, s.rho] for s in twin.states])
        assert float((ours.scales / scales - 1).abs().max()) < 2e-6
        assert ours.next_step.item() == 0
        return ours, x_t, got

    @pytest.mark.parametrize("size", [(2, 37, 53), (1, 16, 16)])
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_six_steps(self, solver, variant, size, one_tile):
        rows = rows_of()
        ours, x_t, got = self.compare(solver, size, variant, rows)
        ours.reset()
        assert torch.equal(run_loop(ours, x_t, rows), got), "same call, same bytes"

    @pytest.mark.parametrize("noise", ["fixed", "learned"])
    def test_ancestral_with_noise_and_fixed_scales(self, solver, noise, one_tile):
        self.compare(solver, (2, 17, 31), "paper", rows_of("ddpm"), noise, update_scales=False)

    def test_multistep_takes_the_prediction_before(self, solver, one_tile):
        """c is 0 in the first row, where the plane of f̂₀ has never been written."""
        rows = [dataclasses.replace(row, c=-0.2 * (s > 0)) for s, row in enumerate(rows_of())]
        self.compare(solver, (1, 17, 31), "official", rows)

    @pytest.mark.parametrize("variant", ["official", "gradient"])
    def test_a_batch_gives_each_image_what_it_gets_alone(self, solver, variant, one_tile):
        rows = rows_of("ddpm", steps=3)
        i, v, x_t = pair(3, 64, 80)  # a size at which FFTs of a batch round otherwise
        seeds = torch.tensor(SEEDS)

        def loop(part):
            settings = dict(rows=rows, variant=variant, eta=ETA, noise="fixed", seeds=seeds[part])
            ours = self.make(solver, i[part], v[part], **settings)
            return run_loop(ours, x_t[part], rows, lambda x: x_t[part] / 2)

        together = loop(slice(None))
        for n in range(3):
            assert torch.equal(together[:, n], loop(slice(n, n + 1))[:, 0])

    def test_other_images_take_the_place_of_the_first(self, solver):
        rows, (i, v, x_t) = rows_of(steps=3), pair(1, 20, 36)
        others = pair(1, 20, 36, seed=9)
        for variant in ("official", "gradient"):
            settings = dict(rows=rows, variant=variant, eta=ETA)
            used = self.make(solver, i, v, **settings)
            run_loop(used, x_t, rows[:2])
            used.load_(*others[:2])
            fresh = self.make(solver, *others[:2], **settings)
            assert torch.equal(run_loop(used, x_t, rows), run_loop(fresh, x_t, rows))


class TestErrors:
    __test__ = INTERPRETED

    def broken_step(self, change):
        rectifier, x_t, out = midway((2, 16, 16), "official", sampler="ddpm", noise="learned")
        given = dict(x_t=x_t, out=out)
        rectifier.step_(**{**given, **change(given)})

    @pytest.mark.parametrize(
        "change, error, words",
        [
            (lambda g: dict(x_t=g["x_t"].double()), TypeError, "x_t is torch.float64"),
            (lambda g: dict(x_t=g["x_t"][:1]), ValueError, "x_t has shape"),
            (lambda g: dict(x_t=g["x_t"].mT), ValueError, "x_t has strides"),
            (lambda g: dict(x_t=g["x_t"].to("meta")), ValueError, "x_t is on meta"),
            (lambda g: dict(out=g["out"].double()), TypeError, "out is torch.float64"),
            (lambda g: dict(out=g["out"][:, :2]), ValueError, "out has shape"),
            (lambda g: dict(out=g["out"][:, :3]), ValueError, r"out has shape .* \(2, 6, 16, 16\)"),
        ],
    )
    def test_step(self, change, error, words):
        with pytest.raises(error, match=words):
            self.broken_step(change)

    def test_construction(self):
        i, v, _ = pair(2, 16, 16)
        make = rectify.TritonStep
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
        with pytest.raises(ValueError, match="noise is 'much'"):
            make(i, v, rows=rows_of(), noise="much")
        with pytest.raises(ValueError, match="solver is 'fft'; expected one of torch, cupy"):
            make(i, v, rows=rows_of(), solver="fft")
        with pytest.raises(TypeError, match="seeds is torch.float32; expected int64"):
            make(i, v, rows=rows_of(), seeds=torch.zeros(2))

    def test_in_one_launch(self):
        rectifier, x_t, eps = midway((1, 16, 16), "official", cls=tile.TileStep)
        with pytest.raises(ValueError, match="after is x_t; expected another tensor"):
            rectifier.step_(x_t, eps, x_t)
        with pytest.raises(ValueError, match="after has shape"):
            rectifier.step_(x_t, eps, torch.empty(1, 3, 16, 17))

    def test_solve(self):
        rhs = torch.zeros(1, 4, 6)
        with pytest.raises(TypeError, match="spectrum is torch.float32; expected complex64"):
            ksolve.spectral_scale_(rhs, 4, 6)
        with pytest.raises(ValueError, match="spans .* elements an image"):
            wide = torch.empty(1, 2, 2**31 + 1, device="meta")[..., :2]
            ksolve.check_tensor("eps", wide, (1, 2, 2), torch.float32, dense=False)
