"""The kernels around the k-solve in Triton's interpreter, on the CPU, against plain PyTorch.

Whether kernels are interpreted is settled when triton is first imported, so the tests run in a
process of their own: ``test_in_the_interpreter`` starts pytest on this file with
TRITON_INTERPRET=1, under which it collects the classes instead. To see them one by one:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_step_kernels.py
"""

import pytest
import torch
from kernel_steps import (
    INTERPRETED,
    SIZES,
    assert_as_good,
    enlarge_tiles,
    guarded,
    midway,
    pair,
    plain,
    rows_of,
)

from ddfm_fast.rectify import VARIANTS
from ddfm_fast.step import NOISES

if INTERPRETED:
    from ddfm_fast.kernels import step as step_kernels
    from ddfm_fast.kernels.step import TritonStep


@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.interpreted("tests/kernels/test_step_kernels.py")
def test_in_the_interpreter(assert_interpreted):
    assert_interpreted()


@pytest.fixture
def one_tile(monkeypatch):
    enlarge_tiles(monkeypatch)


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


class TestOneStep:
    __test__ = INTERPRETED
    SIZE = (2, 5, 31)

    def layouts(self, eps):
        wide = torch.full((2, 6, *eps.shape[2:]), float("nan"), dtype=eps.dtype)
        wide[:, :3] = eps
        last = wide.to(memory_format=torch.channels_last)
        return eps.to(memory_format=torch.channels_last), wide[:, :3], last[:, :3]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.usefixtures("one_tile")
    def test_eps_dtype_and_layout(self, dtype):
        """The result has the bytes of a float32 copy, whatever the layout of the prior's output."""
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
    @pytest.mark.usefixtures("one_tile")
    def test_noise(self, size, noise, dtype):
        """Noise follows each image's seed; the prior's variance half comes with its ε."""
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

    def test_scales_are_finished_in_order(self, monkeypatch):
        """There are three rounds of four tiles, the last one masked; a batch changes nothing."""
        monkeypatch.setattr(step_kernels, "SUM_BLOCK", 4)
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
    @pytest.mark.usefixtures("one_tile")
    def test_scales_stay_where_they_are_not_updated(self, variant):
        rectifier, x_t, eps = midway(self.SIZE, variant, row=5, update_scales=False)
        before = rectifier.scales.clone()
        rectifier.partial.fill_(float("nan"))
        rectifier.step_(x_t, eps)
        assert torch.equal(rectifier.scales, before)
        assert rectifier.next_step.item() == 0, "after the last row comes the first"

    @pytest.mark.usefixtures("one_tile")
    def test_nan_from_the_prior_is_not_hidden(self):
        rectifier, x_t, eps = midway((1, 16, 16), "official")
        eps[0, 1, 2, 3] = float("nan")
        rectifier.partial.fill_(1)
        rectifier.update_(x_t, eps, rectifier.k)
        assert x_t[0, :, 2, 3].isnan().all() and int(x_t.isnan().sum()) == 3

    @pytest.mark.usefixtures("one_tile")
    def test_offsets_beyond_two_to_the_31(self):
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
        make = TritonStep
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
