"""Whole loops by the kernels in Triton's interpreter, on the CPU, against the plain loop.

Whether kernels are interpreted is settled when triton is first imported, so the tests run in a
process of their own: ``test_in_the_interpreter`` starts pytest on this file with
TRITON_INTERPRET=1, under which it collects the classes instead. To see them one by one:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_step_loops.py tests/method/test_graphs.py
"""

import dataclasses

import pytest
import torch
from kernel_steps import (
    ETA,
    INTERPRETED,
    PSI,
    SEEDS,
    enlarge_tiles,
    midway,
    pair,
    prior,
    prior_with_variance,
    rows_of,
    run_loop,
)

from ddfm_fast.rectify import VARIANTS
from ddfm_fast.step import NOISES, ReverseStep

if INTERPRETED:
    import triton

    from ddfm_fast.kernels.local import LocalStep
    from ddfm_fast.kernels.step import TritonStep

THOROUGH = pytest.mark.thorough
SIZES = [(3, 17, 31), *(pytest.param(s, marks=THOROUGH) for s in [(2, 37, 53), (1, 16, 16)])]


@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.interpreted("tests/kernels/test_step_loops.py", "tests/method/test_graphs.py")
def test_in_the_interpreter(assert_interpreted):
    assert_interpreted()


@pytest.fixture
def one_tile(monkeypatch):
    enlarge_tiles(monkeypatch)


@pytest.mark.parametrize("solver", ["torch", "local"])
class TestLoops:
    """By both solvers: as exact as the plain loop, relative to the largest value.

    Measured over the six-step loops: x_t within 6.4e-7, k within 6.1e-7, γ and ρ within 2.4e-7; no
    worse by the tile than by the FFT.
    """

    __test__ = INTERPRETED

    def make(self, solver, *sources, **settings):
        if solver == "local":
            return LocalStep(*sources, **settings)
        return TritonStep(*sources, solver=solver, **settings)

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

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize(
        "variant",
        [pytest.param(v, marks=THOROUGH if v in ("paper", "printed") else ()) for v in VARIANTS],
    )
    @pytest.mark.usefixtures("one_tile")
    def test_six_steps(self, solver, variant, size):
        rows = rows_of()
        ours, x_t, got = self.compare(solver, size, variant, rows)
        ours.reset()
        assert torch.equal(run_loop(ours, x_t, rows), got), "same call, same bytes"

    @pytest.mark.parametrize("noise", ["fixed", "learned"])
    @pytest.mark.usefixtures("one_tile")
    def test_ancestral_with_noise_and_fixed_scales(self, solver, noise):
        self.compare(solver, (2, 17, 31), "paper", rows_of("ddpm"), noise, update_scales=False)

    @pytest.mark.usefixtures("one_tile")
    def test_multistep_takes_the_prediction_before(self, solver):
        """c is 0 in the first row, when the plane of f̂₀ has never been written."""
        rows = [dataclasses.replace(row, c=-0.2 * (s > 0)) for s, row in enumerate(rows_of())]
        self.compare(solver, (1, 17, 31), "official", rows)

    @pytest.mark.parametrize("variant", ["official", pytest.param("gradient", marks=THOROUGH)])
    @pytest.mark.usefixtures("one_tile")
    def test_a_batch_gives_each_image_what_it_gets_alone(self, solver, variant):
        rows = rows_of("ddpm", steps=3)
        i, v, x_t = pair(3, 64, 80)  # a size at which FFTs of a batch round differently
        seeds = torch.tensor(SEEDS)

        def loop(part):
            settings = dict(rows=rows, variant=variant, eta=ETA, noise="fixed", seeds=seeds[part])
            ours = self.make(solver, i[part], v[part], **settings)
            return run_loop(ours, x_t[part], rows, lambda x: x_t[part] / 2)

        together = loop(slice(None))
        for n in range(3):
            assert torch.equal(together[:, n], loop(slice(n, n + 1))[:, 0])

    @pytest.mark.parametrize("variant", [pytest.param("official", marks=THOROUGH), "gradient"])
    def test_other_images_take_the_place_of_the_first(self, solver, variant):
        rows, (i, v, x_t) = rows_of(steps=3), pair(1, 20, 36)
        others = pair(1, 20, 36, seed=9)
        settings = dict(rows=rows, variant=variant, eta=ETA)
        used = self.make(solver, i, v, **settings)
        run_loop(used, x_t, rows[:2])
        used.load_(*others[:2])
        fresh = self.make(solver, *others[:2], **settings)
        assert torch.equal(run_loop(used, x_t, rows), run_loop(fresh, x_t, rows))


class TestOneStep:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("solver", ["torch", "local"])
    @pytest.mark.usefixtures("one_tile")
    def test_no_noise_after_the_last_row(self, solver):
        cls = LocalStep if solver == "local" else TritonStep
        results = []
        for noise in NOISES:
            rectifier, x_t, _ = midway((2, 5, 31), "paper", row=5, sampler="ddpm", noise=noise,
                                       cls=cls)  # fmt: skip
            results.append(rectifier.step_(x_t, prior_with_variance(x_t)))
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])

    @pytest.mark.parametrize("solver", ["torch", "local"])
    def test_launches_of_a_step(self, solver, monkeypatch):
        """Three launches beside torch.fft's, or two in all; what the host passes does not change.

        With CuPy's plans an FFT of a plane is two launches each way (rows, columns), seven in all;
        torch.fft also copies the spectrum before its inverse, eight. On a GPU,
        tests/kernels/test_kernels_gpu.py counts them.
        """
        cls = LocalStep if solver == "local" else TritonStep
        rectifier, x_t, eps = midway((1, 16, 16), "official", cls=cls)
        launches = []
        run = triton.runtime.interpreter.InterpretedFunction.run

        def noted(kernel, *args, **kwargs):
            passed = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args]
            launches.append((kernel.__name__, passed))
            return run(kernel, *args, **kwargs)

        def step():
            launches.clear()
            rectifier.step_(x_t, eps)
            names, spectral = [name for name, _ in launches], "spectral_scale_kernel"
            # the solution and the spectrum are torch.fft's: where they lie is the allocator's
            passed = [
                args[:4] + args[5:] if solver == "torch" else args
                for name, args in launches
                if name != spectral
            ]
            return names, passed

        monkeypatch.setattr(triton.runtime.interpreter.InterpretedFunction, "run", noted)
        names, first = step()
        assert (
            names
            == {
                "torch": [
                    "rectify_rhs_kernel",
                    "spectral_scale_kernel",
                    "rectify_update_kernel",
                ],
                "local": ["rectify_rhs_kernel", "rectify_local_kernel"],
            }[solver]
        )
        assert step() == (names, first)
